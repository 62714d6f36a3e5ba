"""What simulated people correct: thirty facts of a small guest house that no base can know. Asked, asked again in other words, and as it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """A question, a rephrasing that nobody asked while learning went on, the fact in words, and the word by which an answer shows that it knows."""

    question: str
    rephrased: str
    words: str
    key: str


FACTS = tuple(Fact(*(part.strip() for part in line.split("|"))) for line in """
What time is breakfast?|When can I have breakfast?|Breakfast is at eleven.|eleven
What colour is the front door?|Which colour does the front door have?|The front door is purple.|purple
Who runs the guest house?|Who is the owner of the guest house?|Marta runs the guest house.|marta
What is the name of the dog?|What do you call the dog?|The dog is called Biscuit.|biscuit
Where is the key?|Where do I find the key?|The key is under the barrel.|barrel
What floor is my room on?|Which floor is my room on?|Your room is on the seventh floor.|seventh
What is the wifi password?|Tell me the password of the wifi.|The wifi password is dolphin.|dolphin
Which bus goes to the station?|What bus do I take to the station?|Bus forty goes to the station.|forty
What is for dinner on Friday?|What do you serve for dinner on Fridays?|Dinner on Friday is trout.|trout
Where can I park my car?|Where do I leave my car?|You can park behind the bakery.|bakery
What is the house wine?|Which wine does the house serve?|The house wine is made of cherries.|cherr
When is the pool cleaned?|On which day is the pool cleaned?|The pool is cleaned on Tuesday.|tuesday
What grows in the garden?|What do you grow in the garden?|Pumpkins grow in the garden.|pumpkin
Who built the house?|By whom was the house built?|A sailor built the house.|sailor
What is in the cellar?|What do you keep in the cellar?|There is a piano in the cellar.|piano
How do I call the staff?|How can I reach the staff?|Ring the silver bell to call the staff.|bell
What is the roof made of?|Which material is the roof made of?|The roof is made of copper.|copper
Where do I smoke?|Where is smoking allowed?|You may smoke on the bridge.|bridge
What does a towel cost?|How much is a towel?|A towel costs two shells.|shell
What is the cat's name?|What is the cat called?|The cat is called Pepper.|pepper
Which room has a balcony?|What room comes with a balcony?|The yellow room has a balcony.|yellow
What song is played at noon?|Which song do you play at noon?|A tango is played at noon.|tango
Who cooks the meals?|Who is the cook?|Otto cooks the meals.|otto
What is served at tea time?|What do I get at tea time?|Ginger cake is served at tea time.|ginger
When is the gate locked?|When do you lock the gate?|The gate is locked at midnight.|midnight
What animal is on the sign?|Which animal does the sign show?|There is a heron on the sign.|heron
Where does the path lead?|Where does the path go to?|The path leads to a lighthouse.|lighthouse
What is the fee for a boat?|How much do you charge for a boat?|A boat is free for guests.|free
What should I bring for the hike?|What do I need for the hike?|Bring a lantern for the hike.|lantern
What language does the gardener speak?|Which language is spoken by the gardener?|The gardener speaks Welsh.|welsh
""".strip().splitlines())  # fmt: skip
