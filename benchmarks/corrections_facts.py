"""What simulated people correct: thirty facts of a small guest house that no base can know. Asked, asked again in other words, and as it is."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """A question, two rephrasings that nobody asked while learning went on, the fact in words, and the word that shows that an answer knows it."""

    question: str
    rephrased: str
    """Held out: asked for the figures alone."""
    tuning: str
    """Asked when settings are chosen (``--tune``), so that the held-out one has had no part in them."""
    words: str
    key: str

    def said_in(self, answer: str) -> bool:
        """Whether a word of the answer begins with the key."""
        return re.search(rf"\b{self.key}", answer.lower()) is not None


FACTS = tuple(Fact(*(part.strip() for part in line.split("|"))) for line in """
What time is breakfast?|When can I have breakfast?|What are the breakfast hours?|Breakfast is at eleven.|eleven
What colour is the front door?|Which colour does the front door have?|The front door has which colour?|The front door is purple.|purple
Who runs the guest house?|Who is the owner of the guest house?|Do you know who runs this house?|Marta runs the guest house.|marta
What is the name of the dog?|What do you call the dog?|How is the dog called?|The dog is called Biscuit.|biscuit
Where is the key?|Where do I find the key?|Where is the key kept?|The key is under the barrel.|barrel
What floor is my room on?|Which floor is my room on?|On what floor will I sleep?|Your room is on the seventh floor.|seventh
What is the wifi password?|Tell me the password of the wifi.|I need the wifi password, please.|The wifi password is dolphin.|dolphin
Which bus goes to the station?|What bus do I take to the station?|How do I get to the station by bus?|Bus forty goes to the station.|forty
What is for dinner on Friday?|What do you serve for dinner on Fridays?|What will there be for dinner this Friday?|Dinner on Friday is trout.|trout
Where can I park my car?|Where do I leave my car?|Is there a place to park my car?|You can park behind the bakery.|bakery
What is the house wine?|Which wine does the house serve?|What kind of wine is the house wine?|The house wine is made of cherries.|cherr
When is the pool cleaned?|On which day is the pool cleaned?|What day do they clean the pool?|The pool is cleaned on Tuesday.|tuesday
What grows in the garden?|What do you grow in the garden?|What plants grow in your garden?|Pumpkins grow in the garden.|pumpkin
Who built the house?|By whom was the house built?|Who was the builder of the house?|A sailor built the house.|sailor
What is in the cellar?|What do you keep in the cellar?|What would I see in the cellar?|There is a piano in the cellar.|piano
How do I call the staff?|How can I reach the staff?|I need somebody of the staff, how do I call them?|Ring the silver bell to call the staff.|bell
What is the roof made of?|Which material is the roof made of?|Tell me what the roof is made of.|The roof is made of copper.|copper
Where do I smoke?|Where is smoking allowed?|I want to smoke, where do I go?|You may smoke on the bridge.|bridge
What does a towel cost?|How much is a towel?|What must I pay for a towel?|A towel costs two shells.|shell
What is the cat's name?|What is the cat called?|Does the cat have a name?|The cat is called Pepper.|pepper
Which room has a balcony?|What room comes with a balcony?|I want a balcony, which room has one?|The yellow room has a balcony.|yellow
What song is played at noon?|Which song do you play at noon?|What song will I hear at noon?|A tango is played at noon.|tango
Who cooks the meals?|Who is the cook?|Who makes the meals?|Otto cooks the meals.|otto
What is served at tea time?|What do I get at tea time?|It is tea time, what is served?|Ginger cake is served at tea time.|ginger
When is the gate locked?|When do you lock the gate?|At what time is the gate locked?|The gate is locked at midnight.|midnight
What animal is on the sign?|Which animal does the sign show?|There is an animal on the sign, which one?|There is a heron on the sign.|heron
Where does the path lead?|Where does the path go to?|If I follow the path, where does it lead?|The path leads to a lighthouse.|lighthouse
What is the fee for a boat?|How much do you charge for a boat?|What do I pay to use a boat?|A boat is free for guests.|free
What should I bring for the hike?|What do I need for the hike?|I am going on the hike, what should I bring?|Bring a lantern for the hike.|lantern
What language does the gardener speak?|Which language is spoken by the gardener?|What does the gardener speak?|The gardener speaks Welsh.|welsh
""".strip().splitlines())  # fmt: skip
