"""The words that the demo's western tales are made of.

Slots in braces are filled by trainer/demo/tales.py: the first group once a tale
(who, where, what it is about), the second anew for each sentence.

    once       hero (later in a paragraph the given name) friend villain horse town land prize
               trade, he him his (the hero's)
    each time  weather hour food drink animal colour number days feeling sound gait
"""

HEROES: dict[str, tuple[str, ...]] = {
    "he": (
        "Amos Reed", "Caleb Stone", "Jesse Holt", "Silas Boone", "Wyatt Crane", "Elias Ward",
        "Tom Hadley", "Ben Calloway", "Luke Mercer", "Josiah Pike",
        "Orrin Vance", "Virgil Tate", "Hiram Colt", "Nathan Briggs", "Emmett Rudd", "Gus Lindqvist",
        "Rafael Ortega", "Samuel Whitaker", "Jed Buckner", "Zeke Farraday",
    ),
    "she": (
        "Clara Dunn", "Martha Quill", "Ruth Delaney", "Abigail Frost", "Hannah Lowe",
        "Sadie Marsh", "Nell Carver", "Ida Thorne",
        "Josephine Yates", "Cora Blackwood", "Pearl Gentry", "Lottie Vaughn", "Maria Delgado",
        "Beth Kincaid", "Winifred Shaw", "Eliza Murdoch",
    ),
}  # fmt: skip
PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her")}

ONCE: dict[str, tuple[str, ...]] = {
    "friend": (
        "Old Pete", "Doc Hanley", "Little Joe", "Aunt Millie", "Shorty", "Deputy Cobb",
        "Grandpa Wills", "Cookie", "Miss Avery", "Lefty", "Father Byrne", "Smoky Jack",
        "Widow Grady", "Sergeant Pruitt", "Big Swede", "Uncle Zachary", "Preacher Nye", "Hattie",
        "Bartholomew", "Kid Lonnie",
    ),
    "villain": (
        "Black Jack Doyle", "Cole Rafferty", "the Danner brothers", "Snake Harlan", "Red Mullen",
        "Colonel Voss", "Dutch Kessler", "the Pecos gang", "One-Eye Farrow", "Judge Tarrant",
        "Whiskey Bill Sutter", "the Ketchum boys", "Major Thackeray", "Silent Mort Haskell",
        "Gentleman Fitch", "the railroad men", "Scarface Beaumont",
    ),
    "horse": (
        "Dusty", "Juniper", "Buck", "Thunder", "Penny", "Cinder", "Old Blue", "Pilgrim", "Copper",
        "Sage",
        "Biscuit", "Lightning", "Magpie", "Patches", "Starlight", "Whisper", "Bramble",
    ),
    "town": (
        "Dry Creek", "Red Rock", "Silver Bend", "Laredo Wells", "Cottonwood", "Lone Pine",
        "Bitter Springs", "Elkhorn", "Dodge Hollow", "Mercy", "Tombstone Flat", "Prairie Gate",
        "Rattlesnake Gulch", "Fort Harker", "Buffalo Crossing", "San Ignacio", "Copperhead",
        "Widow's Ford", "Saddleback", "Hangtown", "Juniper Station", "Perdition",
    ),
    "land": (
        "the canyon", "the high desert", "the badlands", "the mesa", "the long valley",
        "the salt flats", "the pine ridge", "the river bottoms", "the lava beds", "the pass",
        "the sagebrush plain", "the petrified forest", "the headwaters", "the sandstone arches",
        "the aspen slopes", "the dry lake", "the box canyon", "the glacier country",
    ),
    "prize": (
        "the payroll", "the gold", "the herd", "the silver watch", "the deed to the ranch",
        "the mail", "the bank money", "the church bell", "the grey mare", "the map",
        "the strongbox", "the wedding ring", "the printing press", "the medicine chest",
        "the telegraph wire", "the seed corn", "the prize bull", "the governor's letter",
    ),
    "trade": (
        "a marshal", "a drifter", "a rancher", "a stage driver", "a blacksmith", "a trapper",
        "a schoolteacher", "a scout", "a gambler", "a homesteader",
        "a surveyor", "a newspaperman", "a sharpshooter", "a bounty hunter", "a shepherd",
        "a telegraph operator", "a mule skinner", "a circuit judge",
    ),
}  # fmt: skip

EACH_TIME: dict[str, tuple[str, ...]] = {
    "weather": (
        "The wind blew hot and dry", "Rain came down in sheets", "The sun beat on the dust",
        "A cold fog lay in the draws", "Snow was falling on the hills",
        "The sky was clear and wide", "Thunder rolled in the west", "Dust hung over the road",
    ),
    "hour": (
        "at sunup", "before noon", "at high noon", "late in the day", "at sundown", "after dark",
        "at midnight", "before the first light", "by lantern light", "when the moon was up",
    ),
    "food": (
        "beans and bacon", "cold biscuits", "a plate of stew", "corn bread", "salt pork",
        "dried apples", "a tin of peaches", "venison", "eggs and ham",
        "jerked beef", "sourdough", "trout from the creek", "rabbit and onions", "molasses cake",
        "cornmeal mush", "a wedge of cheese",
    ),
    "drink": (
        "black coffee", "whiskey", "spring water", "buttermilk", "sarsaparilla", "cider",
        "peppermint tea", "warm beer", "tequila",
    ),
    "animal": (
        "coyote", "rattlesnake", "hawk", "jackrabbit", "mountain lion", "buzzard", "owl",
        "longhorn", "stray dog", "crow",
        "grizzly bear", "wolverine", "porcupine", "pronghorn", "prairie dog", "wild turkey",
        "bobcat", "scorpion", "mustang",
    ),
    "colour": (
        "red", "grey", "black", "yellow", "brown", "white", "blue", "dusty", "crimson", "silver",
        "golden", "faded", "spotted", "crooked",
    ),
    "number": ("two", "three", "four", "five", "six", "seven", "a dozen", "twenty"),
    "days": ("two days", "three days", "a week", "ten days", "a month", "a day and a night"),
    "feeling": (
        "tired", "angry", "afraid", "glad", "uneasy", "sure", "lonesome", "proud", "sorry", "calm",
        "thirsty", "restless", "stubborn", "cheerful", "bewildered", "grateful", "suspicious",
        "peaceful", "weary", "hopeful",
    ),
    "sound": (
        "a shot", "a drumming of hooves", "a whistle", "a coyote's cry", "a slamming door",
        "the creak of a wagon", "a bell", "a soft step", "a fiddle",
        "a harmonica", "thunder", "breaking glass", "a locomotive", "a woman singing",
        "the hammer of a blacksmith", "a rockslide", "splashing water",
    ),
    "gait": (
        "slowly", "hard", "at a trot", "at a gallop", "without a word", "side by side",
        "through the night", "in single file", "as if chased", "whistling",
    ),
}  # fmt: skip

TITLES = (
    "{hero} Rides to {town}", "The Trouble at {town}", "{horse} and the Long Road",
    "What {friend} Saw", "A Reckoning in {town}", "The Night of the {animal}",
    "How {hero} Found {prize}", "{days} to {town}",
)  # fmt: skip
