"""Everyday sentences that dictionaries' examples lack: questions, requests, small talk, times, prices and numbers."""

from __future__ import annotations

import random
import re

from vocoder_voice_kumo.english import ONES, TENS


def listed(text: str) -> list[str]:
    return re.split(r" ?\| ?", text)


SLOTS: dict[str, list[str]] = {
    "person": listed(
        "he|she|my sister|my friend|the doctor|our teacher|the woman next door|that man|the boy|the girl"
        "|my father|your mother|the driver|her husband|his wife|the president|an old lady|the captain|my uncle"
        "|one of the students|the waiter|this child|the nurse|our neighbor|the manager|someone|nobody|everybody"
        "|the team|the police officer"
    ),
    "we": listed("I|you|we|they|the others|most people|my parents|the children|some of us|all of them|both of you"),
    "did": listed(
        "went home early|bought a new house|forgot the tickets|called me last night|lost the game"
        "|won the first prize|left the room without a word|asked for more time|made a big mistake"
        "|found the right answer|told us a story|broke the window|came back too late|cleaned the kitchen"
        "|drove all night|paid the bill|fell asleep on the sofa|wrote everything down|sold the old car"
        "|changed the subject|took the wrong bus|felt much better|got very angry|cooked a wonderful dinner"
        "|learned to swim|stood at the door|ran down the stairs|laughed at the joke|read the whole book"
        "|kept the secret|sent a long message|knew it from the start|brought some flowers|held my hand"
        "|put it back on the shelf|began to cry|heard a strange noise|grew tired of waiting|gave it away"
        "|thought about it again|missed the last train|walked across the field|turned off the radio"
        "|agreed with us"
    ),
    "do": listed(
        "go home|wait here|try again|open the window|call a doctor|finish the work|look at this picture"
        "|take a break|listen to the radio|sit down|stand up|come with us|leave now|pay for it|write it down"
        "|help them|eat something|drink some water|ask someone else|read the letter|change the date|buy a new one"
        "|find the exit|turn it off|keep it warm|speak more slowly|use the other door|show me the way"
        "|think about it|play outside|learn the rules|meet them at the airport|bring your own food"
        "|carry these bags|follow the path|move the table|fix the machine|answer the phone|watch the news"
        "|send a message|cut the bread|wash your hands|believe every word|stay a while"
    ),
    "thing": listed(
        "a cup of tea|the red chair|a glass of milk|this book|my blue jacket|the front door|a piece of cake"
        "|that old house|the green bag|a pair of shoes|the kitchen table|a bottle of wine|the yellow car"
        "|an orange|two eggs|some cheese|a box of matches|the garden|the morning paper|a warm blanket"
        "|the white horse|an empty bottle|the last page|a heavy stone|the broken clock|your telephone|a black dog"
        "|the whole story|a clean towel|the other half|a ticket to Boston|the price of oil|a bowl of rice"
        "|the top of the hill|a job in the city|the sound of the bell"
    ),
    "place": listed(
        "in the kitchen|at the office|on the beach|near the river|behind the church|in the middle of the road"
        "|at school|under the bed|in front of the house|across the street|on the second floor|in New York"
        "|by the lake|at home|outside the town|inside the box|between the trees|above the clouds|on the train"
        "|in the mountains|around here|next to the bank|over there|at the end of the hall|in the south of France"
        "|on this side of the island|upstairs"
    ),
    "when": listed(
        "today|tomorrow|last night|this morning|next week|on Monday|on Tuesday|on Wednesday|on Thursday|on Friday"
        "|on Saturday|on Sunday|in January|in February|in March|in April|in May|in June|in July|in August"
        "|in September|in October|in November|in December|two years ago|in an hour|after lunch|before dinner"
        "|at midnight|at noon|every day|once a month|all the time|as soon as possible|right now|many years later"
        "|in the spring|all summer"
    ),
    "adj": listed(
        "big|small|good|bad|new|old|hot|cold|easy|difficult|beautiful|ugly|cheap|expensive|fast|slow|strong|weak"
        "|happy|sad|dark|bright|clean|dirty|dry|wet|empty|full|hard|soft|heavy|light|high|low|long|short|loud"
        "|quiet|rich|poor|safe|dangerous|sharp|smooth|sweet|bitter|thick|thin|warm|cool|wide|narrow|young"
        "|different|important|possible|strange|simple|true|wrong|ready|free|busy|tired|hungry|thirsty|careful"
        "|useful|perfect|terrible|wonderful"
    ),
    "wh": listed("why|when|where|how|how often|how long"),
    "noun": listed(
        "water|time|money|music|work|food|weather|house|world|city|room|road|school|book|car|dog|cat|tree|river"
        "|sea|sky|sun|moon|night|day|year|week|family|mother|father|brother|sister|friend|child|woman|man|people"
        "|country|king|war|peace|law|life|death|love|hope|fear|name|word|language|story|question|answer|problem"
        "|reason|idea|plan|game|team|party|market|store|street|bridge|train|plane|ship|boat|bus|street light"
        "|window|door|floor|wall|roof|garden|field|farm|hill|mountain|forest|fire|snow|rain|wind|ice|stone|wood"
        "|metal|paper|glass|color|shape|size|number|letter|picture|song|voice|sound|heart|hand|head|face|eye|ear"
        "|mouth|foot|hair|body|blood|bread|meat|fish|fruit|apple|egg|milk|tea|coffee|sugar|salt|doctor|teacher"
        "|student|worker|driver|farmer|soldier|lawyer"
    ),
}

FRAMES = listed(
    "{person} {did}.|{person} {did} {when}.|{person} {did}, and {we} {did}.|{when}, {person} {did}."
    "|did {we} {do}?|please {do}.|please {do} {when}.|can you {do}?|could you {do}, please?"
    "|would you like to {do}?|let us {do}.|I want to {do}.|I want to {do} {when}.|we have to {do}."
    "|you should {do} {when}.|they will {do} {when}.|do not {do}.|why did you {do}?|{wh} should we {do}?"
    "|I saw {thing} {place}.|where is {thing}?|{thing} is {place}.|is {thing} {place}?|there is {thing} {place}."
    "|put {thing} {place}, please.|I bought {thing} {when}.|who took {thing}?|this is {thing}."
    "|it is too {adj} for me.|it was {adj} and {adj}.|is it {adj} or {adj}?|the {noun} is {adj}."
    "|the {noun} was very {adj} {when}.|that {noun} is not {adj}.|what a {adj} {noun}!"
    "|every {noun} needs a {noun}.|the {noun} and the {noun} are {adj}."
    "|a {adj} {noun} is better than a {adj} {noun}.|my {noun} is as {adj} as yours.|her {adj} {noun} was {place}."
    "|I like the {noun}, but not the {noun}.|how much is the {noun}?|how many are there {place}?"
    "|what do you know about the {noun}?|which {noun} do you mean?|it costs {number} dollars."
    "|we need {number} more.|there were {number} people {place}.|it is {hour} o'clock."
    "|it is {small} minutes past {hour}.|the number is {digits}.|call me at {digits}.|we met in {year}."
    "|she is {small} years old.|page {number}, line {small}.|the train leaves at {hour} {small}."
    "|he was born in {year}.|yes, {we} will {do}.|no, {person} {did}.|well, it is {adj}.|oh, that is {adj}!"
    "|thank you for the {noun}.|good morning, {person} {did}.|excuse me, where is the {noun}?"
    "|if you {do}, {we} will {do}.|when {person} {did}, it was {adj}.|{we} never {did}."
    "|I think that {person} {did} because it was {adj}.|she said that the {noun} was {adj}."
    "|he asked {wh} {person} {did}.|what happened to the {noun} {when}?|I do not know {wh} {person} {did}."
    "|maybe {we} can {do} {when}.|the {noun} of the {noun} is {adj}.|there is no {noun} without {noun}."
    "|some {noun} is {adj}, and some is {adj}.|nothing is more {adj} than the {noun}.|{we} used to {do} {when}."
    "|it takes {number} days to {do}.|half of the {noun} is {adj}.|the first {noun} was {adj}."
)


def number_words(number: int) -> str:
    """Numbers below a million, in words without hyphens."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f" {ONES[number % 10]}" if number % 10 else "")
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            joint = " and " if rest and rest < 100 and name == "hundred" else " "
            return f"{number_words(number // size)} {name}{joint + number_words(rest) if rest else ''}"
    raise AssertionError(number)


def year_words(year: int) -> str:
    return f"{number_words(year // 100)} {number_words(year % 100)}"


def everyday_sentence(chance: random.Random) -> str:
    """One sentence, in the spelling of a text: ``Could you call a doctor, please?``"""
    frame = chance.choice(FRAMES)
    text = ""
    for piece in frame.split("{"):
        slot, closed, rest = piece.partition("}")
        text += _filled(slot, chance) + rest if closed else piece
    return text[0].upper() + text[1:]


def _filled(slot: str, chance: random.Random) -> str:
    if slot == "number":
        return number_words(chance.randrange(2, 10 ** chance.randint(1, 6)))
    if slot == "small":
        return number_words(chance.randint(2, 59))
    if slot == "hour":
        return number_words(chance.randint(1, 12))
    if slot == "digits":
        return " ".join(ONES[chance.randrange(10)] for _ in range(chance.randint(3, 7)))
    if slot == "year":
        return year_words(chance.choice((*range(1811, 1900), *range(1911, 2000), *range(2010, 2030))))
    return chance.choice(SLOTS[slot])
