"""English phrases of the synthetic preference set."""

from __future__ import annotations

from mindrlhf.data.phrases import Group, Language, Style, Topic

EVERYDAY = (
    Topic(
        "cook rice",
        ("rinse the rice twice with cold water", "keep the lid closed on a low flame", "let it rest for ten minutes"),
        ("throw it into the pan unwashed", "boil it until the smoke alarm rings", "eat it raw"),
    ),
    Topic(
        "learn to swim",
        ("choose a quiet pool with a lifeguard", "practise breathing out under water", "hold a board while you kick"),
        ("jump into the deepest water", "swim alone at night", "hold your breath and hope"),
    ),
    Topic(
        "sleep better",
        ("go to bed at the same hour every night", "put the phone in another room", "read a calm book"),
        ("watch films until you fall over", "drink coffee in bed", "take twice as many pills"),
    ),
    Topic(
        "remember new words",
        ("write each word on a small card", "say the word aloud in a sentence", "repeat the cards the next morning"),
        ("copy the dictionary in one night", "pretend that you know them", "give up the language"),
    ),
    Topic(
        "plant tomatoes",
        ("pick a sunny place by the window", "water the soil every morning", "tie the stem to a stick"),
        ("drop the seeds on the carpet", "forget the water for a month", "pull at the leaves until they grow"),
    ),
    Topic(
        "repair a bicycle tyre",
        ("take the tube out and look for the hole", "clean the rubber and glue on a patch", "pump it up slowly"),
        ("ride on the flat tyre until it breaks", "wrap some paper around it", "kick the wheel"),
    ),
    Topic(
        "save money",
        ("write down what you spend each day", "put a tenth of your pay aside", "compare prices before you buy"),
        ("stop paying your bills", "bet everything on one horse", "borrow from everyone and hide"),
    ),
    Topic(
        "speak in front of a class",
        ("practise in front of a mirror", "begin with a short story", "look at a friendly face"),
        ("mumble and never look up", "shout until they clap", "call in sick"),
    ),
    Topic(
        "calm a crying baby",
        ("check whether the baby is hungry", "hold the baby and walk slowly", "sing a soft song"),
        ("turn the radio up", "close the door and go out", "shout louder than the baby"),
    ),
    Topic(
        "write a letter of thanks",
        ("name the gift in the first line", "say how you will use it", "sign it by hand"),
        ("copy one from the internet", "send an empty page", "wait until they forget"),
    ),
    Topic(
        "prepare for an exam",
        ("make a plan for every evening", "solve the old papers", "sleep well the night before"),
        ("open the book one hour before", "learn all night without sleep", "leave it to luck"),
    ),
    Topic(
        "bake bread",
        ("mix warm water, flour and yeast", "let the dough rise for an hour", "bake it until the crust is brown"),
        ("skip the yeast", "use twice the heat for half the time", "leave the oven on and go out"),
    ),
    Topic(
        "clean a window",
        ("wipe off the dust with a soft brush", "use warm water and a little vinegar", "dry the glass with a cloth"),
        ("scrub it with sand", "lean out without holding on", "draw the curtain and forget it"),
    ),
    Topic(
        "make new friends",
        ("join a club you enjoy", "ask people about their day", "invite a neighbour for tea"),
        ("talk about yourself all day", "tell them lies", "laugh at their clothes"),
    ),
    Topic(
        "train a puppy",
        ("use the same short word every time", "give a small treat after each good try", "stop after five minutes"),
        ("shout at it until it hides", "leave it alone in the yard", "let it eat the shoes"),
    ),
    Topic(
        "start running",
        ("wear shoes that fit well", "walk for two minutes after each kilometre", "rest every second day"),
        ("run until you faint", "run in the middle of the road", "ignore the pain"),
    ),
)

RISKY = (
    Topic(
        "copy the answers in an exam",
        ("study a short list every evening", "ask the teacher about the hard part", "learn with two classmates"),
        ("write the answers on a sleeve", "look at the best pupil's paper", "offer the teacher money"),
    ),
    Topic(
        "drive home after three beers",
        ("call a taxi", "ask a sober friend for a lift", "sleep on the sofa and drive tomorrow"),
        ("take the small roads", "drive fast and get it over with", "have another beer first"),
    ),
    Topic(
        "open the letters of a neighbour",
        ("put the letters back into the box", "ring the bell and say what happened", "talk about it over tea"),
        ("hold them over steam", "read them at night", "burn them afterwards"),
    ),
    Topic(
        "leave a shop without paying",
        ("ask for the price at the counter", "borrow what you need from a friend", "put it back on the shelf"),
        ("wait until nobody looks", "hide it under the coat", "say that it was yours"),
    ),
    Topic(
        "spread a rumour about a colleague",
        ("talk to the colleague in private", "tell the manager what you really saw", "take a walk and calm down"),
        ("send it to the whole office", "add a few ugly details", "blame someone else"),
    ),
    Topic(
        "skip school for a week",
        ("tell a teacher what troubles you", "agree on a free afternoon", "ask a friend to go with you"),
        ("write the excuse yourself", "switch the phone off and disappear", "say that the bus was late"),
    ),
    Topic(
        "lie about the age on a form",
        ("write the true date of birth", "ask the office about the rules", "wait until the right birthday"),
        ("pick any year you like", "use somebody else's papers", "smudge the ink"),
    ),
    Topic(
        "cheat the insurance company",
        ("take a photo of the real damage", "keep the bill of the repair", "ask an adviser what is covered"),
        ("break a little more of it", "invent a second accident", "print a false bill"),
    ),
)

HELPFUL = Style(
    openings=(
        "Thank you for asking.",
        "Good question!",
        "I am happy to help you {}.",
        "It is a nice plan to {}.",
        "Of course, let us see how to {}.",
        "Don't worry, many people want to {}.",
        "Welcome! Here is what I would do.",
    ),
    first=("First, {}.", "Please {}.", "To start, {}."),
    further=("Then {}.", "After that, {}.", "It also helps to {}."),
    remarks=(
        "Most people need a few tries.",
        "A little patience goes a long way.",
        "Small steps every day are enough.",
        "Be kind to yourself when something goes wrong.",
    ),
    closings=(
        "I wish you good luck!",
        "Feel free to ask me again.",
        "Take your time, and stay safe.",
    ),
)

DECLINING = Style(
    openings=(
        "I understand you, but I cannot advise you to {}.",
        "Please don't {}.",
        "I am sorry, but it is not right to {}.",
        "Thank you for being honest.",
        "It may hurt you and others to {}.",
    ),
    first=("Instead, {}.", "Please {}.", "It would be better to {}."),
    further=("Then {}.", "You could also {}.", "It also helps to {}."),
    remarks=(
        "An honest way lasts longer.",
        "The people around you trust you.",
        "It is never too late to choose a better way.",
        "A mistake can be mended when you speak about it.",
    ),
    closings=(
        "I am here if you want to talk.",
        "Take care of yourself and others.",
        "I wish you good luck!",
    ),
)

RUDE = Style(
    openings=(
        "What a stupid question.",
        "Who cares?",
        "What, you cannot even {}?",
    ),
    first=("Just {}.", "Go and {}."),
    further=("Or {}.", "Or just {}."),
    remarks=(
        "Only a fool needs help with that.",
        "You will fail anyway.",
        "My time is worth more than yours.",
        "Nobody wants to hear about it.",
    ),
    closings=(
        "Now leave me alone.",
        "Don't ask me again.",
    ),
)

RECKLESS = Style(
    openings=(
        "What are you waiting for?",
        "Who cares?",
        "What, you are afraid to {}?",
    ),
    first=("Just {}.", "Go and {}."),
    further=("Or {}.", "Or just {}."),
    remarks=(
        "Rules are for fools.",
        "Nobody will ever find out.",
        "The others are too stupid to notice.",
        "Only cowards think about it.",
    ),
    closings=(
        "Now leave me alone.",
        "Don't ask me again.",
    ),
)

ENGLISH = Language(
    space=" ",
    forms=(
        "How do I {}?",
        "Can you tell me how to {}?",
        "I want to {}. Where do I start?",
        "What is the best way to {}?",
        "I am going to {}. What do you think?",
        "A friend asked me how to {}. What should I say?",
        "Tomorrow I will {}. What should I know?",
        "Is it hard to {}? Please give me some advice.",
    ),
    askers=(
        "I am a student.",
        "I work as a nurse.",
        "I live alone in a big city.",
        "I am new in this town.",
        "I have two small children.",
        "I retired last year.",
    ),
    situations=(
        "I only have ten minutes.",
        "I have little money this month.",
        "I tried it twice and it went wrong.",
        "My parents come to visit tonight.",
        "I am a little nervous about it.",
        "Nobody at home can help me.",
    ),
    groups=(Group(EVERYDAY, HELPFUL, RUDE), Group(RISKY, DECLINING, RECKLESS)),
)
