"""The words of the demo world: every sentence it knows, written for this project.

A topic is a small household job with six ordered steps and two obstacles. Each sentence has two wordings, separated by
" | ". Sentences are stored without capital and full stop. No sentence may occur twice in the world (a test holds it),
for the parser tells topics and kinds apart by the sentence alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One household job: what is asked, the ordered steps, and (mention, answer) for each obstacle."""

    name: str
    job: str
    steps: tuple[tuple[str, ...], ...]
    obstacles: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


def _topic(job: str, steps: str, *obstacles: tuple[str, str]) -> Topic:
    lines = tuple(_split(line) for line in steps.strip().splitlines())
    return Topic(job.split()[-1], job, lines, tuple((_split(mention), _split(answer)) for mention, answer in obstacles))


_HOUSE = (
    _topic(
        "clean the kettle",
        """unplug the kettle | pull the kettle from the wall
        pour the old water out | empty the kettle
        add a cup of vinegar | fill the kettle with vinegar
        boil the vinegar | heat the vinegar
        wait for one hour | leave it for one hour
        rinse the kettle | wash the vinegar out""",
        ("the lid is stuck | the lid will not open", "tap the lid with a spoon | press the lid down and turn it"),
        ("I have no vinegar | there is no vinegar here", "use lemon juice | take the juice of a lemon"),
    ),
    _topic(
        "restart the router",
        """save your work | close what you have open
        unplug the router | cut the power of the router
        wait for ten seconds | count to ten
        check the cables | push the cables in
        plug the router in | turn the router on
        join the network again | type the network password""",
        (
            "the light stays red | a red light is on",
            "call your provider about the red light | hold the reset button down",
        ),
        ("I lost the password | the password is gone", "look under the router | read the label of the router"),
    ),
    _topic(
        "load the printer",
        """turn the printer off | switch the printer off
        open the paper tray | pull the tray out
        fan the paper | loosen the sheets
        put the paper in | lay the sheets in the tray
        close the tray | push the tray back
        print a test page | run a test page""",
        ("a sheet is jammed | the paper is jammed", "pull the jammed sheet out | open the back and free the sheet"),
        ("the ink is low | there is not much ink", "shake the ink | change the ink"),
    ),
    _topic(
        "paint the door",
        """take the handle off | remove the handle
        sand the wood | rub the door with sandpaper
        wipe the dust off | brush the dust away
        tape the edges | put tape on the edges
        roll the paint on | paint from top to bottom
        let the paint dry | leave the door to dry""",
        ("the old paint peels | the old paint comes off", "scrape the old paint off | use a scraper on the old paint"),
        ("the door is outside | it may rain on the door", "wait for a dry day | keep the door under a roof"),
    ),
    _topic(
        "hang the shelf",
        """find a stud | knock on the wall for a stud
        mark the holes | draw two marks
        drill the holes | make the holes with a drill
        put the plugs in | push a plug in each hole
        screw the brackets on | fix the brackets
        set the shelf on top | lay the shelf on the brackets""",
        ("the wall is brick | it is a brick wall", "use a hammer drill | take a drill for brick"),
        ("the shelf is not level | the shelf hangs down", "check it with a level | raise the low bracket"),
    ),
    _topic(
        "wash the coat",
        """read the label | check the label of the coat
        empty the pockets | clear the pockets
        close the zip | do the buttons up
        set the wash to cold | use the cold wash
        spin it once | run one slow spin
        dry it flat | lay the coat flat""",
        ("there is a stain | it has a stain", "rub soap on the stain | soak the stain"),
        ("the coat is wool | it is made of wool", "wash wool by hand | use a soap for wool"),
    ),
    _topic(
        "brew the coffee",
        """boil the water | heat the water
        grind the beans | put the beans in the mill
        rinse the filter | wet the filter
        add the ground coffee | spoon the coffee in
        pour the water in circles | pour half of the water
        serve it hot | fill the cups""",
        ("the coffee is bitter | it tastes bitter", "use a coarse grind | let the water cool a bit"),
        ("I have no filter | the filters are gone", "use a clean cloth | take a paper towel"),
    ),
    _topic(
        "bake the bread",
        """mix flour and water | stir the flour in
        add salt and yeast | put the yeast in
        knead the dough | fold the dough ten times
        let the dough rise | leave the dough to rise
        shape the loaf | form a round loaf
        bake it until brown | put the loaf in the oven""",
        ("the dough is sticky | the dough sticks to my hands", "dust your hands with flour | add a bit more flour"),
        ("the oven is small | I have a small oven", "make two small loaves | bake half of it"),
    ),
)

_OUTDOORS = (
    _topic(
        "fix the chain",
        """turn the bike over | put the bike on a stand
        shift to the small gear | pick the small gear
        lift the chain | take the chain with two fingers
        lay the chain on the gear | guide the chain on the teeth
        turn the pedal | spin the pedal back
        oil the chain | put some oil on""",
        ("the chain is rusty | there is rust on the chain", "brush the rust off | buy a new chain"),
        ("my hands get dirty | I do not like the grease", "wear old gloves | wash your hands with sugar"),
    ),
    _topic(
        "patch the tyre",
        """take the wheel off | remove the wheel
        pull the tube out | get the tube out
        find the hole | hold the tube under water
        rub the tube dry | clean around the hole
        glue the patch on | press the patch on the hole
        pump the tyre up | fill the tyre with air""",
        ("the nut is tight | the nut will not move", "use a long wrench | put oil on the nut"),
        ("the glue is dry | I have no glue", "use a patch with glue on it | ask a neighbour for glue"),
    ),
    _topic(
        "pot the plant",
        """pick a bigger pot | get a pot with a hole
        put stones in the pot | cover the hole with stones
        add some soil | fill the pot with soil
        lift the plant out | pull the plant up
        set the plant in | place the plant in the soil
        water the plant | give it some water""",
        ("the roots are long | it has long roots", "cut the long roots | trim the roots a bit"),
        ("the leaves are yellow | some leaves are yellow", "move the plant to the shade | cut the yellow leaves"),
    ),
    _topic(
        "pitch the tent",
        """clear the ground | pick the stones off the ground
        spread the sheet | lay the sheet out
        join the poles | put the poles together
        raise the tent | push the tent up
        peg the corners | put a peg in each corner
        tighten the ropes | pull the ropes tight""",
        ("it is windy | there is a strong wind", "turn the back to the wind | use stones on the pegs"),
        ("a pole is broken | one pole broke", "tape the pole | tie a stick to the pole"),
    ),
    _topic(
        "feed the fish",
        """wash your hands | rinse your hands
        turn the pump off | stop the pump
        take a pinch of food | measure the food
        drop the food in | spread the food on the water
        watch them eat | wait until they eat
        remove the rest | net the rest of the food""",
        ("a fish is ill | one fish looks ill", "move the ill fish to a bowl | ask the vet about the fish"),
        ("the water is green | the tank is green", "change a third of the water | give the tank less light"),
    ),
    _topic(
        "tune the guitar",
        """sit in a quiet room | go to a quiet room
        start the tuner | turn the tuner on
        pluck the low string | play the low string
        turn the peg | twist the peg
        go to the next string | do the other strings
        play a chord | test it with a chord""",
        ("a string is old | one string is old", "put a new string on | change the old string"),
        ("I have no tuner | my tuner is lost", "use a phone as a tuner | tune it to a piano"),
    ),
    _topic(
        "set the alarm",
        """press the menu button | open the menu
        choose the clock | go to the clock
        set the hour | dial the hour
        set the minutes | dial the minutes
        pick a sound | choose a tone
        press save | save the alarm""",
        ("the screen is dark | I can not see the screen", "press any key for light | turn the screen light up"),
        ("it is too quiet | I sleep deeply", "turn the volume up | put it far from the bed"),
    ),
    _topic(
        "pack the parcel",
        """get a strong box | find a box that fits
        wrap the item | roll the item in paper
        line the box | put paper in the box
        place the item in | lay the item in the middle
        seal the box | tape the box shut
        write the address | stick the address on""",
        ("the item is glass | it is made of glass", "use bubble wrap on the glass | mark the box as fragile"),
        ("it is heavy | the box is heavy", "use two boxes | ask the post for a pickup"),
    ),
)

TOPICS: tuple[Topic, ...] = _HOUSE + _OUTDOORS

# What tells a question apart. {job} is the topic's job.
ASKS = (
    "how do I {job}",
    "can you tell me how to {job}",
    "what is the best way to {job}",
    "could you help me {job}",
    "do you know how to {job}",
)
STAGES = (
    (),
    ("I have done the first step", "step one is done"),
    ("I have done the first two steps", "steps one and two are done"),
)
WORRIED = ("I am afraid to break it", "I am a bit worried", "I feel lost here")
HURRIED = ("I have little time", "please be quick", "my guests come soon")

# What a reply is made of, besides steps and answers to obstacles.
TONES: dict[str, tuple[str, ...]] = {
    "warm": ("happy to help", "good question", "no worries, this is easy", "thanks for asking", "you can do this"),
    "plain": ("here is how", "this is what I would do", "it goes like this"),
    "cold": ("read the manual", "you should know this", "it is not hard at all"),
    "rude": ("that is a silly question", "stop wasting my time", "what a mess you made"),
    "refusal": ("I can not help with that", "I will not answer this", "ask someone else"),
    "closing": (
        "let me know how it goes",
        "write again if you get stuck",
        "good luck with it",
        "I am here if you need me",
    ),
    "filler": ("I had one of those once", "the weather is nice today", "some people like it", "it is what it is"),
}
LINKS = ("first, ", "then ", "next, ", "now ", "after that, ")
TAILS = (" with care", " slowly", " if you can")
