"""The sentences of the demo's tales, by the part of the tale they belong to.

Slots: see trainer/demo/phrases.py. A tale goes through PARTS in order; TALK and
SCENERY come in between.
"""

OPENING = (
    "{hero} was {trade} who lived on the edge of {town}.",
    "{hero} came to {town} {hour}, riding a {colour} horse called {horse}.",
    "Nobody in {town} knew where {hero} had come from.",
    "It was a hard year in {town}, and {hero} was {trade} without much luck.",
    "Folks in {town} still tell of the year when {hero} rode in from {land}.",
    "{hero} had been {trade} for longer than {he} cared to say.",
    "In those days there was no law in {town} but {hero}.",
    "{hero} had one friend in {town}, and that was {friend}.",
    "The winter that {hero} turned thirty, {villain} came to {town}.",
    "{friend} used to say that {hero} was the best rider in {town}.",
)

TROUBLE = (
    "Then {villain} took {prize} and rode for {land}.",
    "One night {villain} came for {prize}.",
    "{friend} ran down the street and said that {prize} was gone.",
    "It was {friend} who brought the news: {villain} had {prize}.",
    "{villain} wanted {prize}, and everyone in {town} knew it.",
    "There was {sound} in the dark, and in the morning {prize} was missing.",
    "{number} men rode out of {town} {hour}, and {prize} went with them.",
    "The sheriff would not go after {villain}, so {hero} said that {he} would.",
    "{hero} looked at the tracks and counted {number} horses.",
    "The bank was shut, the street was empty, and {villain} had been there first.",
)

ROAD = (
    "{hero} saddled {horse} and rode {gait} toward {land}.",
    "For {days} they followed the tracks across {land}.",
    "{hero} and {friend} rode {gait} until the horses were {feeling}.",
    "At the creek {hero} let {horse} drink and filled the canteen.",
    "They made camp {hour} and ate {food} by a small fire.",
    "{friend} cooked {food}, and there was {drink} to wash it down.",
    "A {animal} crossed the trail, and {horse} would not go on.",
    "The tracks turned north, and {hero} turned with them.",
    "{horse} threw a shoe, and they lost half a day.",
    "They came upon a {colour} wagon with a broken wheel and nobody in it.",
    "{hero} slept with one hand on {his} rifle and heard {sound} in the night.",
    "On the third morning they saw smoke over {land}.",
    "An old woman at a well gave them {drink} and pointed to {land}.",
    "{friend} found a {colour} scarf on a thorn bush and held it up.",
)

MEETING = (
    "{villain} was waiting {hour} with {number} men.",
    "{hero} walked into the saloon, and the fiddle stopped.",
    "There was {sound}, and then it was very still.",
    "{hero} came down from the rocks with {his} hands where everyone could see them.",
    "{friend} went round by the creek while {hero} kept to the road.",
    "{villain} laughed, but nobody laughed along.",
    "The first shot took the hat off {friend}.",
    "{hero} was quick, and {villain} was a little slower.",
    "{horse} came through the smoke at a gallop, and {hero} caught the reins.",
    "When the dust had settled, {villain} had nothing left to say.",
    "{hero} put {prize} on the table and turned the cards over.",
    "A {animal} cried out in the rocks, and every man looked up but {hero}.",
)

ENDING = (
    "{hero} brought {prize} back to {town}, and the whole town came out to see.",
    "They rode home {gait}, and {prize} was with them.",
    "{villain} was never seen in {town} again.",
    "The judge gave {villain} ten years, and {friend} bought the {drink}.",
    "{hero} hung up {his} hat, ate {food}, and slept for a day.",
    "In the morning {hero} was gone, and so was {horse}.",
    "{town} was quiet again, and {hero} was {feeling}.",
    "To this day there is a {colour} stone on the road to {land} with the name of {hero} on it.",
    "{friend} tells it better, but that is how it was.",
    "And that is why the people of {town} keep a lamp lit for {hero}.",
)

SCENERY = (
    "{weather}.",
    "{weather}, and there was {sound} far away.",
    "{weather}, and {horse} was {feeling}.",
    "A {animal} watched from the rocks.",
    "It was quiet {hour}, but for {sound}.",
    "The street of {town} lay {colour} and empty.",
    "{hero} felt {feeling}.",
    "Somewhere in {land} there was {sound}.",
    "The {colour} hills stood over {town}.",
    "There was nothing to see but {land} and the sky.",
)

TALK = (
    '"I never saw a {animal} out {hour}," said {friend}.\n"You have now," said {hero}.',
    '"How far is it to {town}?" asked {friend}.\n"{Days}," said {hero}, "if {horse} holds out."',
    '"You are {trade}, not a fool," said {friend}. "Let it go."\n"I can\'t," said {hero}.',
    '"Is there any {drink} left?" asked {hero}.\n'
    '"There is {drink} and there is {food}," said {friend}.',
    '"{villain} went that way," said {friend}, "with {number} men."\n{hero} only nodded.',
    '"Give back {prize}," said {hero}.\n"Come and take it," said {villain}.',
    '"I am not afraid of {villain}," said {hero}.\n"I am," said {friend}.',
    '"What do you hear?" asked {friend}.\n"{Sound}," said {hero}. "Keep still."',
    '"That is a {colour} horse," said {villain}. "What will you take for it?"\n'
    '"{horse} is not for sale," said {hero}.',
    '"Ride with me," said {hero}.\n'
    '"Where to?" asked {friend}.\n"To {land}," said {hero}, "and back, if we are lucky."',
    '"The law is {days} from here," said {villain}.\n"The law is here," said {hero}.',
    '"We could turn back," said {friend}.\n"We could," said {hero}, and rode on.',
)

PARTS = (OPENING, TROUBLE, ROAD, MEETING, ENDING)
