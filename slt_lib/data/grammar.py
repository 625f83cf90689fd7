"""A seeded synchronous grammar: one abstract sentence, said in English, German and French.

`NP` and `Clause` say what is meant; `english`, `german` and `french` say it with the agreement, case and word order of
the language. No synonym is drawn on the way, so each English sentence has one translation. `generate` draws sentences.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from slt_lib.base.errors import InputError

LANGUAGES = ("en", "de", "fr")
MOST = 1_000_000  # sentences asked for at once; the grammar has far more, this is where waiting stops to be sensible

# class | English | German (w: masculine of the weak declension) | French; plurals after "/", without one: never plural.
# Classes: P person, K kin, A animal, F food, M food by mass, D drink, R to read, T thing, E with a switch,
# O opens and closes, C clothing, V vehicle, L place, H room, G building. Places add their three prepositions.
NOUNS = """
P | man/men | m Mann/Männer | m homme/hommes
P | woman/women | f Frau/Frauen | f femme/femmes
P | child/children | n Kind/Kinder | m enfant/enfants
P | boy/boys | w Junge/Jungen | m garçon/garçons
P | girl/girls | n Mädchen/Mädchen | f fille/filles
P | teacher/teachers | m Lehrer/Lehrer | m professeur/professeurs
P | doctor/doctors | m Arzt/Ärzte | m médecin/médecins
P | nurse/nurses | f Krankenschwester/Krankenschwestern | f infirmière/infirmières
P | neighbor/neighbors | w Nachbar/Nachbarn | m voisin/voisins
P | student/students | w Student/Studenten | m étudiant/étudiants
P | baker/bakers | m Bäcker/Bäcker | m boulanger/boulangers
P | queen/queens | f Königin/Königinnen | f reine/reines
P | farmer/farmers | w Bauer/Bauern | m fermier/fermiers
P | actress/actresses | f Schauspielerin/Schauspielerinnen | f actrice/actrices
P | tourist/tourists | w Tourist/Touristen | m touriste/touristes
P | painter/painters | m Maler/Maler | m peintre/peintres
P | judge/judges | m Richter/Richter | m juge/juges
K | friend/friends | m Freund/Freunde | m ami/amis
K | sister/sisters | f Schwester/Schwestern | f sœur/sœurs
K | brother/brothers | m Bruder/Brüder | m frère/frères
K | mother | f Mutter | f mère
K | father | m Vater | m père
K | aunt/aunts | f Tante/Tanten | f tante/tantes
K | uncle/uncles | m Onkel/Onkel | m oncle/oncles
A | dog/dogs | m Hund/Hunde | m chien/chiens
A | cat/cats | f Katze/Katzen | m chat/chats
A | horse/horses | n Pferd/Pferde | m cheval/chevaux
A | bird/birds | m Vogel/Vögel | m oiseau/oiseaux
A | cow/cows | f Kuh/Kühe | f vache/vaches
A | bear/bears | w Bär/Bären | m ours/ours
A | lion/lions | w Löwe/Löwen | m lion/lions
A | mouse/mice | f Maus/Mäuse | f souris/souris
A | monkey/monkeys | w Affe/Affen | m singe/singes
A | elephant/elephants | w Elefant/Elefanten | m éléphant/éléphants
A | goat/goats | f Ziege/Ziegen | f chèvre/chèvres
F | apple/apples | m Apfel/Äpfel | f pomme/pommes
F | egg/eggs | n Ei/Eier | m œuf/œufs
F | cake/cakes | m Kuchen/Kuchen | m gâteau/gâteaux
F | orange/oranges | f Orange/Orangen | f orange/oranges
F | potato/potatoes | f Kartoffel/Kartoffeln | f pomme de terre/pommes de terre
F | pear/pears | f Birne/Birnen | f poire/poires
M | bread | n Brot | m pain
M | cheese | m Käse | m fromage
M | meat | n Fleisch | f viande
M | soup | f Suppe | f soupe
D | water | n Wasser | f eau
D | milk | f Milch | m lait
D | coffee | m Kaffee | m café
D | wine | m Wein | m vin
D | beer | n Bier | f bière
R | book/books | n Buch/Bücher | m livre/livres
R | newspaper/newspapers | f Zeitung/Zeitungen | m journal/journaux
R | letter/letters | m Brief/Briefe | f lettre/lettres
R | story/stories | f Geschichte/Geschichten | f histoire/histoires
R | poem/poems | n Gedicht/Gedichte | m poème/poèmes
T | key/keys | m Schlüssel/Schlüssel | f clé/clés
T | chair/chairs | m Stuhl/Stühle | f chaise/chaises
T | clock/clocks | f Uhr/Uhren | f horloge/horloges
T | flower/flowers | f Blume/Blumen | f fleur/fleurs
T | cup/cups | f Tasse/Tassen | f tasse/tasses
T | glass/glasses | n Glas/Gläser | m verre/verres
T | knife/knives | n Messer/Messer | m couteau/couteaux
T | umbrella/umbrellas | m Regenschirm/Regenschirme | m parapluie/parapluies
T | gift/gifts | n Geschenk/Geschenke | m cadeau/cadeaux
T | ring/rings | m Ring/Ringe | f bague/bagues
E | lamp/lamps | f Lampe/Lampen | f lampe/lampes
E | computer/computers | m Computer/Computer | m ordinateur/ordinateurs
E | radio/radios | n Radio/Radios | f radio/radios
O | door/doors | f Tür/Türen | f porte/portes
O | window/windows | n Fenster/Fenster | f fenêtre/fenêtres
O | box/boxes | f Kiste/Kisten | f boîte/boîtes
O | suitcase/suitcases | m Koffer/Koffer | f valise/valises
O | cupboard/cupboards | m Schrank/Schränke | m placard/placards
C | hat/hats | m Hut/Hüte | m chapeau/chapeaux
C | coat/coats | m Mantel/Mäntel | m manteau/manteaux
C | shirt/shirts | n Hemd/Hemden | f chemise/chemises
C | dress/dresses | n Kleid/Kleider | f robe/robes
C | shoe/shoes | m Schuh/Schuhe | f chaussure/chaussures
V | car/cars | n Auto/Autos | f voiture/voitures
V | bicycle/bicycles | n Fahrrad/Fahrräder | m vélo/vélos
V | truck/trucks | m Lastwagen/Lastwagen | m camion/camions
V | ship/ships | n Schiff/Schiffe | m bateau/bateaux
L | garden/gardens | m Garten/Gärten | m jardin/jardins | in in dans
L | park/parks | m Park/Parks | m parc/parcs | in in dans
L | forest/forests | m Wald/Wälder | f forêt/forêts | in in dans
L | market/markets | m Markt/Märkte | m marché/marchés | at auf à
L | street/streets | f Straße/Straßen | f rue/rues | in auf dans
L | beach/beaches | m Strand/Strände | f plage/plages | on an sur
L | village/villages | n Dorf/Dörfer | m village/villages | in in dans
L | city/cities | f Stadt/Städte | f ville/villes | in in dans
H | kitchen/kitchens | f Küche/Küchen | f cuisine/cuisines | in in dans
H | room/rooms | n Zimmer/Zimmer | f chambre/chambres | in in dans
H | office/offices | n Büro/Büros | m bureau/bureaux | in in dans
G | house/houses | n Haus/Häuser | f maison/maisons | in in dans
G | school/schools | f Schule/Schulen | f école/écoles | at in à
G | station/stations | m Bahnhof/Bahnhöfe | f gare/gares | at an à
G | hotel/hotels | n Hotel/Hotels | m hôtel/hôtels | in in dans
G | library/libraries | f Bibliothek/Bibliotheken | f bibliothèque/bibliothèques | in in dans
G | hospital/hospitals | n Krankenhaus/Krankenhäuser | m hôpital/hôpitaux | in in à
G | museum/museums | n Museum/Museen | m musée/musées | in in dans
G | bridge/bridges | f Brücke/Brücken | m pont/ponts | on auf sur
G | church/churches | f Kirche/Kirchen | f église/églises | in in dans
"""

# Classes it goes with | English, comparative | German, comparative, attributive stem where it differs |
# French m, f, mpl, fpl ("<" before the noun), m before a vowel where it differs. "-": not compared.
ADJECTIVES = """
PKARTOCVLHG | old older | alt älter | < vieux vieille vieux vieilles vieil
PKA | young younger | jung jünger | < jeune jeune jeunes jeunes
AFTOVLHG | big bigger | groß größer | < grand grande grands grandes
PKAFTOCVLHG | small smaller | klein kleiner | < petit petite petits petites
RTEOCV | new newer | neu neuer | < nouveau nouvelle nouveaux nouvelles nouvel
PARTOCVLHG | beautiful more_beautiful | schön schöner | < beau belle beaux belles bel
FMDR | good - | gut - | < bon bonne bons bonnes
TOCV | red - | rot - | rouge rouge rouges rouges
TOCV | green - | grün - | vert verte verts vertes
TEOCV | blue - | blau - | bleu bleue bleus bleues
AOCV | black - | schwarz - | noir noire noirs noires
ATOCV | white - | weiß - | blanc blanche blancs blanches
TOC | heavy heavier | schwer schwerer | lourd lourde lourds lourdes
EDTCV | expensive more_expensive | teuer teurer teur | cher chère chers chères
EV | broken - | kaputt - | cassé cassée cassés cassées
PKA | tired more_tired | müde müder müd | fatigué fatiguée fatigués fatiguées
PK | happy happier | glücklich glücklicher | heureux heureuse heureux heureuses
PKA | sad sadder | traurig trauriger | triste triste tristes tristes
PKA | hungry - | hungrig - | affamé affamée affamés affamées
PK | rich richer | reich reicher | riche riche riches riches
PK | poor poorer | arm ärmer | pauvre pauvre pauvres pauvres
PLG | famous more_famous | berühmt berühmter | célèbre célèbre célèbres célèbres
PK | friendly friendlier | freundlich freundlicher | aimable aimable aimables aimables
PKAD | strong stronger | stark stärker | fort forte forts fortes
PKA | clever cleverer | klug klüger | intelligent intelligente intelligents intelligentes
PKA | lazy lazier | faul fauler | paresseux paresseuse paresseux paresseuses
A | dangerous more_dangerous | gefährlich gefährlicher | dangereux dangereuse dangereux dangereuses
OLHG | empty - | leer - | vide vide vides vides
MD | cold colder | kalt kälter | froid froide froids froides
FM | fresh fresher | frisch frischer | frais fraîche frais fraîches
R | long longer | lang länger | < long longue longs longues
R | interesting more_interesting | interessant interessanter | intéressant intéressante intéressants intéressantes
COVHL | dirty dirtier | schmutzig schmutziger | sale sale sales sales
"""

# Flags: s a state (no progressive, no manner), d a definite object only, 1 one object only, 2 gives its object to a
# person, n no place.
# flags | subjects | objects | English base, past and -ing if irregular, (particle) | German, "+" after a prefix that
# parts, "*" with sein, du, er and participle if irregular | case | French, "*" with être, je, tu, il, nous, ils,
# participle, future stem if irregular | preposition ("à!" takes lui, leur).
VERBS = """
| PKA | | sleep slept | schlafen schläfst schläft geschlafen | | dormir dors dors dort dormons dorment dormi |
| PK | | work | arbeiten | | travailler |
| PK | | laugh | lachen | | rire ris ris rit rions rient ri |
| PK | | sing sang | singen singst singt gesungen | | chanter |
| PK | | dance | tanzen | | danser |
| PKA | | swim swam swimming | schwimmen* schwimmst schwimmt geschwommen | | nager |
| PKA | | run ran running | laufen* läufst läuft gelaufen | | courir cours cours court courons courent couru courr |
| PK | | cry | weinen | | pleurer |
| PKA | | arrive | an+kommen* kommst kommt gekommen | | arriver* |
s | PKA | | stay | bleiben* bleibst bleibt geblieben | | rester* |
| PKA | | fall fell | fallen* fällst fällt gefallen | | tomber* |
n | PKA | | come_back came_back coming_back | zurück+kommen* kommst kommt gekommen | | \
revenir* reviens reviens revient revenons reviennent revenu reviendr |
n | PKA | | leave left | weg+gehen* gehst geht gegangen | | partir* pars pars part partons partent parti |
s | PKA | PKAVLG | see saw seeing | sehen siehst sieht gesehen | A | voir vois vois voit voyons voient vu verr |
| PK | FMDRTECV | buy bought | kaufen | A | acheter achète achètes achète achetons achètent acheté achèter |
| PK | FMDRTECV | sell sold | verkaufen | A | vendre vends vends vend vendons vendent vendu |
| PKA | FM | eat ate | essen isst isst gegessen | A | manger |
| PK | D | drink drank | trinken trinkst trinkt getrunken | A | boire bois bois boit buvons boivent bu |
| PK | R | read read | lesen liest liest gelesen | A | lire lis lis lit lisons lisent lu |
| PK | R | write wrote | schreiben schreibst schreibt geschrieben | A | \
écrire écris écris écrit écrivons écrivent écrit |
| PK | ALGT | paint | malen | A | peindre peins peins peint peignons peignent peint |
| PK | O | open | auf+machen | A | ouvrir ouvre ouvres ouvre ouvrons ouvrent ouvert |
| PK | O | close | zu+machen | A | fermer |
| PK | E | turn_on turned_on turning_on | an+machen | A | allumer |
| PK | E | turn_off turned_off turning_off | aus+machen | A | éteindre éteins éteins éteint éteignons éteignent éteint |
n | PK | H | tidy | auf+räumen | A | ranger |
| PKA | PKARTC | look (for) | suchen | A | chercher |
s | PKA | PKARTCL | find found | finden findest findet gefunden | A | trouver |
s | PK | RTC | lose lost | verlieren verlierst verliert verloren | A | perdre perds perds perd perdons perdent perdu |
s | PKA | PKAV | hear heard | hören | A | entendre entends entends entend entendons entendent entendu |
sd | PK | PKA | love | lieben | A | aimer |
n | PK | LG | visit | besuchen | A | visiter |
| PK | PK | invite | ein+laden lädst lädt geladen | A | inviter |
| PK | PK | call | an+rufen rufst ruft gerufen | A | \
appeler appelle appelles appelle appelons appellent appelé appeller |
| PK | PK | help | helfen hilfst hilft geholfen | D | aider |
| PK | PK | thank | danken | D | remercier |
| PKA | PKAV | follow | folgen* | D | suivre suis suis suit suivons suivent suivi |
| PK | PK | answer | antworten | D | répondre réponds réponds répond répondons répondent répondu | à!
| PK | PK | listen (to) | zu+hören | D | écouter |
| PKA | PKARTO | look (at) | an+sehen siehst sieht gesehen | A | regarder |
| PK | PKV | wait (for) | warten | auf A | attendre attends attends attend attendons attendent attendu |
| PK | PK | think thought (of) | denken denkst denkt gedacht | an A | penser | à
| PK | PK | talk (with) | sprechen sprichst spricht gesprochen | mit D | parler | avec
| PKA | PKA | play (with) | spielen | mit D | jouer | avec
n1d | PKA | G | go went (to) | gehen* gehst geht gegangen | zu D | aller* vais vas va allons vont allé ir | à
| PK | ACV | wash | waschen wäschst wäscht gewaschen | A | laver |
| PK | OVH | clean | putzen | A | nettoyer nettoie nettoies nettoie nettoyons nettoient nettoyé nettoier |
| PK | EV | repair | reparieren | A | réparer |
| PK | A | feed fed | füttern | A | nourrir nourris nourris nourrit nourrissons nourrissent nourri |
| PK | RTC | throw_away threw_away throwing_away | weg+werfen wirfst wirft geworfen | A | \
jeter jette jettes jette jetons jettent jeté jetter |
s | PK | PKRTC | forget forgot forgetting | vergessen vergisst vergisst vergessen | A | oublier |
| PK | RTECV | steal stole | stehlen stiehlst stiehlt gestohlen | A | voler |
| PKA | FRTO | carry | tragen trägst trägt getragen | A | porter |
| PK | RTC | pack | ein+packen | A | emballer |
| PK | G | build built | bauen | A | construire construis construis construit construisons construisent construit |
s | PK | PKR | understand understood | verstehen verstehst versteht verstanden | A | \
comprendre comprends comprends comprend comprenons comprennent compris |
2 | PK | FDRTC | give gave | geben gibst gibt gegeben | A | donner |
2 | PK | ARTCGV | show | zeigen | A | montrer |
2 | PK | RTC | send sent | schicken | A | envoyer envoie envoies envoie envoyons envoient envoyé enverr |
2 | PK | FMDRTO | bring brought | bringen bringst bringt gebracht | A | apporter |
2 | PK | RTCV | lend lent | leihen leihst leiht geliehen | A | prêter |
"""

# A verb that takes another: English (past, link) | German, five persons, participle, zu | French, ditto, preposition.
SEMI = """
can - | können kann kannst kann können können - | pouvoir peux peux peut pouvons peuvent -
must - | müssen muss musst muss müssen müssen - | devoir dois dois doit devons doivent -
want wanted to | wollen will willst will wollen wollen - | vouloir veux veux veut voulons veulent -
try tried to | versuchen versuche versuchst versucht versuchen versuchen versucht zu | \
essayer essaie essaies essaie essayons essaient essayé de
hope hoped to | hoffen hoffe hoffst hofft hoffen hoffen gehofft zu | \
espérer espère espères espère espérons espèrent espéré
begin began to | beginnen beginne beginnst beginnt beginnen beginnen begonnen zu | \
commencer commence commences commence commençons commencent commencé à
promise promised to | versprechen verspreche versprichst verspricht versprechen versprechen versprochen zu | \
promettre promets promets promet promettons promettent promis de
"""

# A verb that takes a whole sentence: English | German, five persons | French, five persons.
SAYING = """
think | denke denkst denkt denken denken | pense penses pense pensons pensent
know | weiß weißt weiß wissen wissen | sais sais sait savons savent
say | sage sagst sagt sagen sagen | dis dis dit disons disent
believe | glaube glaubst glaubt glauben glauben | crois crois croit croyons croient
"""

TIMES = {
    "pres": "today|heute|aujourd'hui; every day|jeden Tag|tous les jours; every morning|jeden Morgen|tous les matins; "
    "every evening|jeden Abend|tous les soirs; in summer|im Sommer|en été; in winter|im Winter|en hiver; now|jetzt|"
    "maintenant",
    "past": "yesterday|gestern|hier; last week|letzte Woche|la semaine dernière; this morning|heute Morgen|ce matin; "
    "last year|letztes Jahr|l'année dernière",
    "fut": "tomorrow|morgen|demain; next week|nächste Woche|la semaine prochaine; tonight|heute Abend|ce soir; "
    "next year|nächstes Jahr|l'année prochaine",
}
DAYS = (
    "Monday|Montag|lundi; Tuesday|Dienstag|mardi; Wednesday|Mittwoch|mercredi; Thursday|Donnerstag|jeudi; "
    "Friday|Freitag|vendredi; Saturday|Samstag|samedi; Sunday|Sonntag|dimanche"
)
UNITS = "hours|Stunden|heures; days|Tagen|jours; weeks|Wochen|semaines; months|Monaten|mois; years|Jahren|ans"
NUMBERS = (
    "two|zwei|deux; three|drei|trois; four|vier|quatre; five|fünf|cinq; six|sechs|six; seven|sieben|sept; "
    "eight|acht|huit; nine|neun|neuf; ten|zehn|dix"
)
OFTEN = "often|oft|souvent; always|immer|toujours; sometimes|manchmal|parfois; never|nie|jamais"
MANNERS = (
    "slowly|langsam|lentement; quickly|schnell|rapidement; quietly|leise|doucement; carefully|vorsichtig|prudemment"
)
ASKING = "where|wo|où; when|wann|quand; why|warum|pourquoi"
NAMES = {"Anna": "f", "Emma": "f", "Marie": "f", "Julia": "f", "Paul": "m", "Martin": "m", "Oliver": "m", "Leo": "m"}

# number, gender, plural | English subject, object, possessive | German nom, acc, dat, possessive | French subject,
# direct, indirect, stressed, possessive m f pl
PRONOUNS = """
0 m | I me my | ich mich mir mein | je me me moi mon ma mes
1 m | you you your | du dich dir dein | tu te te toi ton ta tes
2 m | he him his | er ihn ihm sein | il le lui lui son sa ses
2 f | she her her | sie sie ihr ihr | elle la lui elle son sa ses
3 m | we us our | wir uns uns unser | nous nous nous nous notre notre nos
4 m | they them their | sie sie ihnen ihr | ils les leur eux leur leur leurs
"""


class Noun(NamedTuple):
    kind: str
    en: list
    gender: str
    de: list
    weak: bool
    fr_gender: str
    fr: list
    preps: list


class Adjective(NamedTuple):
    kinds: str
    en: str
    en_more: str
    de: str
    de_more: str
    stem: str
    before: bool
    fr: list


class Verb(NamedTuple):
    flags: str
    subjects: str
    objects: str
    en: list  # base, third person, past, -ing
    particle: str
    de: list  # infinitive, participle, with zu
    prefix: str
    de_present: list
    sein: bool
    prep: str
    case: str
    fr: list  # infinitive, participle, future stem
    fr_present: list
    etre: bool
    fr_prep: str


class Semi(NamedTuple):
    en: list  # base, third person, past
    to: str
    de: list  # infinitive, participle
    de_present: list
    zu: bool
    fr: list
    fr_present: list
    fr_prep: str


class Pronoun(NamedTuple):
    index: int
    gender: str
    en: list
    de: list
    fr: list


@dataclass(frozen=True, slots=True)
class NP:
    """Who or what: a pronoun ("she"), a name ("Anna") or a noun ("dog").

    det: the, a, bare (plural or mass), this, every, many, a number ("two") or a possessor's pronoun ("she" for her);
    owner: the NP in "the teacher's dog"; rel: a clause with a gap.
    """

    head: str
    det: str = "the"
    plural: bool = False
    adj: str = ""
    owner: NP | None = None
    rel: Clause | None = None

    @property
    def index(self) -> int:
        """0 to 4: I, you, he or she or it, we, they."""
        return PRONOUN[self.head].index if self.head in PRONOUN else 4 if self.plural else 2

    @property
    def indefinite(self) -> bool:
        return self.head in NOUN and (self.det in ("a", "bare", "many") or self.det in NUMBER)


@dataclass(frozen=True, slots=True)
class Clause:
    """One finite verb with all that hangs on it. `verb` is "be" with `adj` (and `than`) or `place`, or a verb.

    tense: pres, prog, past, fut; gap: the part ("subj", "obj") that a relative pronoun stands for.
    """

    subj: NP
    verb: str
    obj: NP | None = None
    to: NP | None = None
    tense: str = "pres"
    semi: str = ""
    neg: bool = False
    often: tuple = ()
    manner: tuple = ()
    place: NP | None = None
    time: tuple = ()
    front: bool = False
    adj: str = ""
    than: NP | None = None
    gap: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# The lexicon, read once


def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip("\n").splitlines()]


def _triples(table: str) -> list[tuple]:
    return [tuple(item.strip().split("|")) for item in table.split(";")]


def _noun(kind: str, en: str, de: str, fr: str, preps: str = "") -> Noun:
    gender, de = de.split(" ", 1)
    fr_gender, fr = fr.split(" ", 1)
    return Noun(
        kind,
        en.split("/"),
        gender.replace("w", "m"),
        de.split("/"),
        gender == "w",
        fr_gender,
        fr.split("/"),
        preps.split(),
    )


def _adjective(kinds: str, en: str, de: str, fr: str) -> Adjective:
    (en, en_more), (de, de_more, *stem) = en.replace("-", "").split(" "), de.split(" ")
    before = fr.startswith("<")
    return Adjective(
        kinds, en, en_more.replace("_", " "), de, de_more, (stem or [de])[0], before, fr.strip("< ").split()
    )


def _third(base: str) -> str:
    first, _, rest = base.partition(" ")
    if first[-1] == "y" and first[-2] not in "aeiou":
        first = first[:-1] + "ies"
    else:
        first += "es" if first.endswith(("s", "x", "z", "ch", "sh", "o")) else "s"
    return f"{first} {rest}".strip()


def _english_verb(text: str) -> tuple[list, str]:
    text, _, particle = text.rstrip(")").partition("(")
    base, *rest = (word.replace("_", " ") for word in text.split())
    if rest:
        past = rest[0]
    elif base[-1] == "y" and base[-2] not in "aeiou":
        past = base[:-1] + "ied"
    else:
        past = base + ("d" if base.endswith("e") else "ed")
    ing = rest[1] if len(rest) > 1 else base.removesuffix("e") + "ing"
    return [base, _third(base), past, ing], particle


def _german_verb(text: str) -> tuple[list, str, list, bool]:
    word, *forms = text.split()
    sein, word = word.endswith("*"), word.rstrip("*")
    prefix, _, word = word.rpartition("+")
    stem = word.removesuffix("n").removesuffix("e")
    if not forms:
        link = "e" if stem.endswith(("t", "d")) else ""
        ge = "" if word.startswith(("be", "ver")) or word.endswith("ieren") else "ge"
        du = stem + ("t" if stem.endswith(("s", "z", "ß")) else link + "st")
        forms = [du, stem + link + "t", f"{ge}{stem}{link}t"]
    du, er, participle = forms
    zu = f"{prefix}zu{word}" if prefix else f"zu {word}"
    return [prefix + word, prefix + participle, zu], prefix, [stem + "e", du, er, word, word], sein


def _french_verb(text: str) -> tuple[list, list, bool]:
    word, *forms = text.split()
    etre, word = word.endswith("*"), word.rstrip("*")
    if not forms:
        stem = word[:-2]
        nous = stem + ("e" if stem.endswith("g") else "") + "ons"
        forms = [stem + "e", stem + "es", stem + "e", nous, stem + "ent", stem + "é"]
    future = forms[6] if len(forms) > 6 else word.removesuffix("e")
    return [word, forms[5], future], forms[:5], etre


def _verb(flags, subjects, objects, en, de, case, fr, fr_prep) -> Verb:
    prep, _, case = case.rpartition(" ")
    return Verb(flags, subjects, objects, *_english_verb(en), *_german_verb(de), prep, case, *_french_verb(fr), fr_prep)


def _semi(en: str, de: str, fr: str) -> Semi:
    (base, past, *to), (de_inf, *de), (fr_inf, *fr) = en.split(), de.split(), fr.split()
    third = base if past == "-" else _third(base)
    return Semi(
        [base, third, past],
        (to or [""])[0],
        [de_inf, de[5]],
        de[:5],
        len(de) > 6,
        [fr_inf, fr[5]],
        fr[:5],
        fr[6] if len(fr) > 6 else "",
    )


def _pronoun(index: str, en: str, de: str, fr: str) -> tuple[str, Pronoun]:
    number, gender = index.split()
    return en.split()[0], Pronoun(int(number), gender, en.split(), de.split(), fr.split())


NOUN = {noun.en[0]: noun for noun in (_noun(*row) for row in _rows(NOUNS))}
ADJECTIVE = {adj.en: adj for adj in (_adjective(*row) for row in _rows(ADJECTIVES))}
VERB = {f"{verb.en[0]} {verb.particle}".strip(): verb for verb in (_verb(*row) for row in _rows(VERBS))}
SEMIS = {semi.en[0]: semi for semi in (_semi(*row) for row in _rows(SEMI))}
SAY = {en: (de.split(), fr.split()) for en, de, fr in _rows(SAYING)}
PRONOUN = dict(_pronoun(*row) for row in _rows(PRONOUNS))
NUMBER = {triple[0]: triple for triple in _triples(NUMBERS)}
OFTENS, MANNER, ASK = _triples(OFTEN), _triples(MANNERS), _triples(ASKING)
TIME = {tense: _triples(table) for tense, table in TIMES.items()}
for _en, _de, _fr in _triples(DAYS):
    TIME["pres"].append((f"on {_en}s", f"{_de.lower()}s", f"le {_fr}"))
    TIME["past"].append((f"last {_en}", f"letzten {_de}", f"{_fr} dernier"))
    TIME["fut"].append((f"next {_en}", f"nächsten {_de}", f"{_fr} prochain"))
for _number in NUMBER.values():
    for _en, _de, _fr in _triples(UNITS):
        TIME["past"].append((f"{_number[0]} {_en} ago", f"vor {_number[1]} {_de}", f"il y a {_number[2]} {_fr}"))
        TIME["fut"].append((f"in {_number[0]} {_en}", f"in {_number[1]} {_de}", f"dans {_number[2]} {_fr}"))

# ---------------------------------------------------------------------------------------------------------------------
# English

_VOWEL_EN = re.compile(r"\ba (?=[aeiou])")


def _np_en(np: NP, case: int = 0) -> str:
    if np.head in PRONOUN:
        return PRONOUN[np.head].en[case]
    if np.head not in NOUN:
        return np.head
    noun = NOUN[np.head]
    if np.owner:
        det = _np_en(np.owner) + "'s"
    elif np.det in PRONOUN:
        det = PRONOUN[np.det].en[2]
    elif np.det == "this":
        det = "these" if np.plural else "this"
    else:
        det = "" if np.det == "bare" else np.det
    text = f"{det} {np.adj} {noun.en[np.plural]}"
    if np.rel:
        who = "who" if noun.kind in "PK" and np.rel.gap == "subj" else "that"
        text += f" {who} {_clause_en(np.rel)}"
    return text


def _be(index: int, tense: str) -> str:
    return ("was were was were were" if tense == "past" else "am are is are are").split()[index]


def _clause_en(c: Clause, ask: str | None = None) -> str:
    index = c.subj.index
    subj = "" if c.gap == "subj" else _np_en(c.subj)
    semi = SEMIS.get(c.semi)
    aux, tail = "", ""
    if c.verb == "be":
        aux, main = ("will", "be") if c.tense == "fut" else (_be(index, c.tense), "")
    else:
        verb = VERB[c.verb]
        forms = verb.en
        if semi:
            forms, tail = semi.en, f"{semi.to} {verb.en[0]}"
        third = index == 2 and c.tense == "pres"
        if c.tense == "fut":
            aux, main = "will", forms[0]
        elif c.tense == "prog":
            aux, main = _be(index, "pres"), forms[3]
        elif semi and not semi.to:
            aux, main = forms[0], ""
        elif c.neg or ask is not None:
            aux, main = "did" if c.tense == "past" else "does" if third else "do", forms[0]
        else:
            main = forms[2] if c.tense == "past" else forms[third]
        if verb.particle:
            tail += f" {verb.particle}"
    negation = "not" if c.neg else ""
    often = c.often[0] if c.often else ""
    if ask is not None:
        words = [ask, aux, subj, often, main, tail]
    else:
        words = [c.time[0] if c.front else "", subj, aux, negation, often, main, tail]
    words += [_np_en(c.to, 1) if c.to else "", _np_en(c.obj, 1) if c.obj and c.gap != "obj" else ""]
    if c.than:
        words += [ADJECTIVE[c.adj].en_more, "than", _np_en(c.than, 1)]
    else:
        words.append(c.adj)
    words.append(c.manner[0] if c.manner else "")
    if c.place:
        words += [NOUN[c.place.head].preps[0], _np_en(c.place)]
    if c.time and not c.front:
        words.append(c.time[0])
    return " ".join(words)


# ---------------------------------------------------------------------------------------------------------------------
# German

_CASES = {"N": 0, "A": 1, "D": 2, "G": 3}
_GENDERS = {"m": 0, "f": 1, "n": 2, "p": 3}
# Endings by case (nominative, accusative, dative, genitive) and gender (m, f, n, plural).
_DER = [row.split() for row in ("der die das die", "den die das die", "dem der dem den", "des der des der")]
_DIESER = [row.split() for row in ("er e es e", "en e es e", "em er em en", "es er es er")]
_EIN = [row.split() for row in ("- e - e", "en e - e", "em er em en", "es er es er")]
_WEAK = [row.split() for row in ("e e e en", "en e e en", "en en en en", "en en en en")]
_MIXED = [row.split() for row in ("er e es en", "en e es en", "en en en en", "en en en en")]
_STRONG = [row.split() for row in ("er e es e", "en e es e", "em er em en", "en er en er")]
_CONTRACT_DE = {"in dem": "im", "an dem": "am", "zu dem": "zum", "zu der": "zur", "von dem": "vom"}
_SEIN = {"pres": "bin bist ist sind sind".split(), "past": "war warst war waren waren".split()}
_HABEN = "habe hast hat haben haben".split()
_WERDEN = "werde wirst wird werden werden".split()
_SYLLABLE = re.compile(r"[aeiouäöü]+")


def _noun_de(noun: Noun, plural: bool, case: str) -> str:
    if plural:
        form = noun.de[1]
        return form + "n" if case == "D" and form[-1] not in "ns" else form
    if noun.weak and case != "N":
        return noun.de[1]
    form = noun.de[0]
    # Right for persons, who alone own things here.
    if case == "G" and noun.gender != "f":
        return form + ("es" if len(_SYLLABLE.findall(form.lower())) == 1 else "s")
    return form


def _np_de(np: NP, case: str, prep: str = "", kein: bool = False) -> str:
    if np.head in PRONOUN:
        return f"{prep} {PRONOUN[np.head].de[_CASES[case]]}"
    if np.head not in NOUN:
        return f"{prep} {np.head}"
    noun = NOUN[np.head]
    row, column = _CASES[case], _GENDERS["p" if np.plural else noun.gender]
    endings, after = _STRONG, ""
    if np.owner:
        if np.owner.head in NAMES:
            det = np.owner.head + "s"
        else:
            det, endings, after = _DER[row][column], _WEAK, _np_de(np.owner, "G")
    elif kein or np.det == "a" or np.det in PRONOUN:
        stem = "kein" if kein else "ein" if np.det == "a" else PRONOUN[np.det].de[3]
        det, endings = stem + _EIN[row][column].strip("-"), _MIXED
    elif np.det == "the":
        det, endings = _DER[row][column], _WEAK
    elif np.det in ("this", "every"):
        det, endings = ("dies" if np.det == "this" else "jed") + _DIESER[row][column], _WEAK
    elif np.det == "many":
        det = "viel" + _STRONG[row][column]
    else:
        det = NUMBER[np.det][1] if np.det in NUMBER else ""
    if prep:
        det = (
            _CONTRACT_DE.get(f"{prep} {det}", f"{prep} {det}") if np.det == "the" and not np.plural else f"{prep} {det}"
        )
    adj = ADJECTIVE[np.adj].stem + endings[row][column] if np.adj else ""
    text = f"{det} {adj} {_noun_de(noun, np.plural, case)} {after}"
    if np.rel:
        role = "N" if np.rel.gap == "subj" else VERB[np.rel.verb].case
        pronoun = "denen" if np.plural and role == "D" else _DER[_CASES[role]][column]
        text += f" , {pronoun} {_clause_de(np.rel, 'last')} ,"
    return text


def _clause_de(c: Clause, order: str = "second", front: str = "") -> str:
    """order: second, first (a question, or after what stands in front) or last (a subordinate clause)."""
    index = c.subj.index
    subj = "" if c.gap == "subj" else _np_de(c.subj, "N")
    semi = SEMIS.get(c.semi)
    verb = VERB.get(c.verb)
    if not verb:
        finite, end = (_WERDEN, "sein") if c.tense == "fut" else (_SEIN[c.tense], "")
    elif c.tense == "fut":
        finite, end = _WERDEN, verb.de[0]
    elif semi:
        infinitive = verb.de[2] if semi.zu else verb.de[0]
        finite, end = (_HABEN, semi.de[1]) if c.tense == "past" else (semi.de_present, "" if semi.zu else infinitive)
    elif c.tense == "past":
        finite, end = _SEIN["pres"] if verb.sein else _HABEN, verb.de[1]
    else:
        finite, end = verb.de_present, verb.prefix
    finite = finite[index]

    middle, late = [], []
    obj = c.obj if c.gap != "obj" else None
    kein = bool(c.neg and obj and obj.indefinite and not verb.prep)
    nicht = "nicht" if c.neg and not kein else ""
    if c.to and c.to.head in PRONOUN:
        middle.append(_np_de(c.to, "D"))
    if obj and obj.head in PRONOUN and not verb.prep:
        middle.append(_np_de(obj, verb.case))
        obj = None
    if c.time and not c.front:
        middle.append(c.time[1])
    middle += [c.often[1] if c.often else "", "gerade" if c.tense == "prog" else ""]
    if c.to and c.to.head not in PRONOUN:
        middle.append(_np_de(c.to, "D"))
    manner = c.manner[1] if c.manner else ""
    if obj and verb.prep:
        late = [nicht, manner, _np_de(obj, verb.case, verb.prep)]
    elif obj and obj.indefinite:
        late = [nicht, manner, _np_de(obj, verb.case, "", kein)]
    else:
        late = [_np_de(obj, verb.case) if obj else "", nicht, manner]
    if c.place:
        late.append(_np_de(c.place, "D", NOUN[c.place.head].preps[1]))
    if c.than:
        late += [ADJECTIVE[c.adj].de_more, "als", _np_de(c.than, "N")]
    elif c.adj:
        late.append(ADJECTIVE[c.adj].de)
    middle += late

    after = ""
    if semi and semi.zu:
        after, middle = " ".join([",", *middle, infinitive, ","]), []
    middle = " ".join(middle)
    if order == "last":
        glue = "" if end and verb and end == verb.prefix else " "
        return f"{subj} {middle} {end}{glue}{finite} {after}"
    front = front or (c.time[1] if c.front else "")
    if order == "first" or front:
        return f"{front} {finite} {subj} {middle} {end} {after}"
    return f"{subj} {finite} {middle} {end} {after}"


# ---------------------------------------------------------------------------------------------------------------------
# French

_VOWELS = "aeiouhâàéèêîôœ"
_ELIDE = re.compile(rf"(?<![\w'-])(je|me|te|le|la|de|ne|que) (?=[{_VOWELS}{_VOWELS.upper()}])(?!huit\b)")
_SI = re.compile(r"\bsi (?=ils?\b)")
_AVOIR = "ai as a avons ont".split()
_ETRE = {
    "pres": "suis es est sommes sont".split(),
    "past": "étais étais était étions étaient".split(),
    "fut": "serai seras sera serons seront".split(),
}
_FUTURE = "ai as a ons ont".split()


def _agree(participle: str, np: NP) -> str:
    form = participle + ("e" if _gender_fr(np) == "f" else "")
    return form + ("s" if np.index > 2 and form[-1] != "s" else "")


def _gender_fr(np: NP) -> str:
    if np.head in PRONOUN:
        return PRONOUN[np.head].gender
    return NOUN[np.head].fr_gender if np.head in NOUN else NAMES[np.head]


def _adj_fr(adj: str, np: NP, before: str = "") -> str:
    forms = ADJECTIVE[adj].fr
    column = (_gender_fr(np) == "f") + 2 * (np.index > 2)
    return forms[4] if column == 0 and len(forms) > 4 and before and before[0] in _VOWELS else forms[column]


def _np_fr(np: NP, prep: str = "", negated: bool = False) -> str:
    if np.head in PRONOUN:
        return f"{prep} {PRONOUN[np.head].fr[3 if prep else 0]}"
    if np.head not in NOUN:
        return f"{prep} {np.head}"
    noun = NOUN[np.head]
    word = noun.fr[np.plural]
    pre = post = ""
    if np.adj:
        if ADJECTIVE[np.adj].before:
            pre = _adj_fr(np.adj, np, word)
        else:
            post = _adj_fr(np.adj, np)
    vowel = (pre or word)[0] in _VOWELS
    column = 2 if np.plural else noun.fr_gender == "f"
    if np.owner or np.det == "the":
        det = ("le", "la", "les")[column]
        if prep in ("à", "de") and (column == 2 or column == 0 and not vowel):
            prep, det = "", {"àle": "au", "àles": "aux", "dele": "du", "deles": "des"}[prep + det]
    elif np.det in PRONOUN:
        det = PRONOUN[np.det].fr[4 + (0 if column == 1 and vowel else column)]
    elif np.det == "this":
        det = "cet" if column == 0 and vowel else ("ce", "cette", "ces")[column]
    elif negated and np.det in ("a", "bare"):
        det = "de"
    elif np.det == "a":
        det = ("un", "une")[column]
    elif np.det == "bare":
        if prep == "de":
            det = ""
        elif np.plural:
            det = "de" if pre else "des"
        else:
            det = "de la" if column else "de le" if vowel else "du"
    else:
        det = {"every": "chaque", "many": "beaucoup de"}.get(np.det) or NUMBER[np.det][2]
    text = f"{prep} {det} {pre} {word} {post}"
    if np.owner:
        text += f" {_np_fr(np.owner, 'de')}"
    if np.rel:
        text += f" {'qui' if np.rel.gap == 'subj' else 'que'} {_clause_fr(np.rel)}"
    return text


def _clause_fr(c: Clause) -> str:
    index = c.subj.index
    subj = "" if c.gap == "subj" else _np_fr(c.subj)
    semi = SEMIS.get(c.semi)
    verb = VERB.get(c.verb)
    obj = c.obj if c.gap != "obj" else None
    clitic, arguments = "", []
    direct = bool(verb) and not verb.fr_prep
    if obj and obj.head in PRONOUN and verb.fr_prep in ("", "à!"):
        clitic = PRONOUN[obj.head].fr[1 if direct else 2]
    elif obj:
        arguments.append(
            _np_fr(
                obj, verb.fr_prep.rstrip("!"), c.neg and direct or bool(c.often) and c.often[2] == "jamais" and direct
            )
        )
    if c.to and c.to.head in PRONOUN:
        clitic = PRONOUN[c.to.head].fr[2]
    elif c.to:
        # After a relative clause the person would seem to belong to that clause.
        arguments.insert(0 if obj and obj.rel else 1, _np_fr(c.to, "à"))

    often = c.often[2] if c.often else ""
    ne = "ne" if c.neg or often == "jamais" else ""
    often = "pas" if c.neg else often
    if not verb:
        verbs = [ne, _ETRE[c.tense][index], often]
    elif semi:
        link = f"{semi.fr_prep} {clitic} {verb.fr[0]}"
        if c.tense == "past":
            verbs = [ne, _AVOIR[index], often, semi.fr[1], link]
        else:
            verbs = [ne, semi.fr_present[index], often, link]
    elif c.tense == "prog":
        verbs = [_ETRE["pres"][index], "en train de", clitic, verb.fr[0]]
    elif c.tense == "past":
        participle = verb.fr[1]
        if verb.etre:
            participle = _agree(participle, c.subj)
        elif direct and c.obj and (c.gap == "obj" or obj.head in PRONOUN):
            participle = _agree(participle, c.obj)
        verbs = [ne, clitic, (_ETRE["pres"] if verb.etre else _AVOIR)[index], often, participle]
    else:
        finite = verb.fr[2] + _FUTURE[index] if c.tense == "fut" else verb.fr_present[index]
        verbs = [ne, clitic, finite, often]

    words = [f"{c.time[2]} ," if c.front else "", subj, *verbs, *arguments]
    if c.than:
        words += ["plus", _adj_fr(c.adj, c.subj), "que", _np_fr(c.than, " ")]
    elif c.adj:
        words.append(_adj_fr(c.adj, c.subj))
    words.append(c.manner[2] if c.manner else "")
    if c.place:
        words.append(_np_fr(c.place, NOUN[c.place.head].preps[2]))
    if c.time and not c.front:
        words.append(c.time[2])
    return " ".join(words)


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


_COMMAS = re.compile(r"(?: ,)+")


def _finish(text: str, end: str) -> str:
    # A subordinate clause closes itself with a comma, and so may the one around it.
    text = _COMMAS.sub(",", " ".join(text.split())).rstrip(",") + end
    return text[0].upper() + text[1:]


def _finish_en(text: str, end: str = ".") -> str:
    text = _VOWEL_EN.sub("an ", " ".join(text.split())).replace("can not", "cannot")
    return _finish(text, end)


def _finish_fr(text: str, end: str = ".") -> str:
    text = " ".join(text.split())
    text = _ELIDE.sub(lambda match: match[1][:-1] + "'", text)
    return _finish(_SI.sub("s'", text), end)


def english(c: Clause) -> str:
    """The clause as an English sentence."""
    return _finish_en(_clause_en(c))


def german(c: Clause) -> str:
    """The clause as a German sentence."""
    return _finish(_clause_de(c), ".")


def french(c: Clause) -> str:
    """The clause as a French sentence."""
    return _finish_fr(_clause_fr(c))


def statement(c: Clause) -> tuple[str, str, str]:
    """One clause, in the three languages; so do the functions below."""
    return english(c), german(c), french(c)


def question(c: Clause, ask: tuple = ("", "", "")) -> tuple[str, str, str]:
    """A yes-or-no question, or one that asks where, when or why."""
    en, de, fr = ask
    return (
        _finish_en(_clause_en(c, en), "?"),
        _finish(_clause_de(c, "first", de), "?"),
        _finish_fr(f"{fr} est-ce que {_clause_fr(c)}", " ?"),
    )


def because(c: Clause, reason: Clause) -> tuple[str, str, str]:
    """German puts the verb of the reason last."""
    return (
        _finish_en(f"{_clause_en(c)} because {_clause_en(reason)}"),
        _finish(f"{_clause_de(c)} , weil {_clause_de(reason, 'last')}", "."),
        _finish_fr(f"{_clause_fr(c)} parce que {_clause_fr(reason)}"),
    )


def says(subj: NP, verb: str, c: Clause) -> tuple[str, str, str]:
    """Someone thinks, knows, says or believes that."""
    en = verb if subj.index != 2 else _third(verb)
    de, fr = SAY[verb]
    return (
        _finish_en(f"{_np_en(subj)} {en} that {_clause_en(c)}"),
        _finish(f"{_np_de(subj, 'N')} {de[subj.index]} , dass {_clause_de(c, 'last')}", "."),
        _finish_fr(f"{_np_fr(subj)} {fr[subj.index]} que {_clause_fr(c)}"),
    )


def when(c: Clause, then: Clause, word: str = "when") -> tuple[str, str, str]:
    """The subordinate clause first, so that the German main clause starts with its verb; word: when, if."""
    return (
        _finish_en(f"{word} {_clause_en(c)} , {_clause_en(then)}"),
        _finish(f"wenn {_clause_de(c, 'last')} , {_clause_de(then, 'first')}", "."),
        _finish_fr(f"{'si' if word == 'if' else 'quand'} {_clause_fr(c)} , {_clause_fr(then)}"),
    )


def but(c: Clause, other: Clause) -> tuple[str, str, str]:
    """Two main clauses."""
    return (
        _finish_en(f"{_clause_en(c)} , but {_clause_en(other)}"),
        _finish(f"{_clause_de(c)} , aber {_clause_de(other)}", "."),
        _finish_fr(f"{_clause_fr(c)} , mais {_clause_fr(other)}"),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


class _Kinds(dict):
    """Class letters -> what belongs to one of them, found once."""

    def __init__(self, entries, letters):
        super().__init__()
        self.entries, self.letters = entries, letters

    def __missing__(self, kinds):
        self[kinds] = [key for key, entry in self.entries.items() if set(self.letters(entry)) & set(kinds)]
        return self[kinds]


_NOUNS_OF = _Kinds(NOUN, lambda noun: noun.kind)
_ADJECTIVES_OF = _Kinds(ADJECTIVE, lambda adj: adj.kinds)
_COMPARED_OF = _Kinds({key: adj for key, adj in ADJECTIVE.items() if adj.en_more}, lambda adj: adj.kinds)
_VERBS = [key for key, verb in VERB.items() for _ in range(2 if verb.objects else 1)]
_NUMBERS, _PRONOUNS, _NAMES = list(NUMBER), list(PRONOUN), list(NAMES)
_SHAPES = ["simple"] * 9 + ["is"] * 3 + ["asks"] * 3 + ["because"] * 3 + ["says"] * 3 + ["when"] * 2 + ["but"] * 2


class _Draw:
    """Draws from Philox's raw stream, which numpy keeps the same from version to version (not so Generator's)."""

    def __init__(self, seed: int, split: str):
        self.bits = np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(split.encode())]))
        self.block = []

    def pick(self, items):
        if not self.block:
            self.block = self.bits.random_raw(8192).tolist()
        return items[self.block.pop() % len(items)]

    def chance(self, percent: int) -> bool:
        return self.pick(range(100)) < percent

    def noun(self, kinds: str, definite: bool = False, subject: bool = False, rich: bool = False) -> NP:
        head = self.pick(_NOUNS_OF[kinds])
        noun = NOUN[head]
        mass = noun.kind in "MD"
        plural = len(noun.en) > 1 and self.chance(25)
        if mass:
            dets = ["bare"] * 3 + ["the", "my"]
        elif plural:
            dets = ["the"] * 4 + ["my", "this", "number", "number", "many"] + ["bare"] * (0 if subject else 2)
        else:
            dets = ["the"] * 5 + ["a"] * 3 + ["my", "my", "this"] + ["every"] * subject
        det = self.pick(dets)
        if len(noun.en) == 1 and not mass and det in ("a", "this", "every"):
            det = "my"
        if definite and det in ("bare", "a", "number", "many", "every"):
            det = "the"
        if det == "number":
            det = self.pick(_NUMBERS)
        elif det == "my":
            det = self.pick(_PRONOUNS)
        adj = self.pick(_ADJECTIVES_OF[noun.kind]) if self.chance(30) else ""
        phrase = NP(head, det, plural, adj)
        if rich and det == "the" and noun.kind not in "K":
            if self.chance(20):
                owner = NP(self.pick(_NAMES)) if self.chance(40) else NP(self.pick(_NOUNS_OF["PK"]))
                if owner.head != head:
                    return replace(phrase, owner=owner)
            elif self.chance(25):
                return self.relative(phrase, noun.kind)
        return phrase

    def relative(self, phrase: NP, kind: str) -> NP:
        tense = self.pick(("pres", "pres", "past"))
        if kind in "PA" and self.chance(60):
            clause = self.clause(tense, phrase, plain=True)
            return replace(phrase, rel=replace(clause, gap="subj"))
        for _ in range(20):
            verb = VERB[key := self.pick(_VERBS)]
            if kind in verb.objects and not (verb.prep or verb.fr_prep or "2" in verb.flags):
                subj = self.someone(verb.subjects)
                if subj.head != phrase.head and not _unclear(verb, subj, tense):
                    return replace(phrase, rel=Clause(subj, key, phrase, tense=tense, gap="obj"))
        return phrase

    def someone(self, kinds: str, definite: bool = False, rich: bool = False) -> NP:
        if "P" in kinds:
            way = self.pick("pppnn......")
            if way != ".":
                return NP(self.pick(_PRONOUNS if way == "p" else _NAMES))
        return self.noun(kinds, definite, True, rich)

    def object(self, kinds: str, subj: NP, definite: bool, rich: bool) -> NP:
        if "P" in kinds and self.chance(35):
            heads = _NAMES if self.chance(35) else _PRONOUNS
        else:
            heads = ()
        while True:
            phrase = NP(self.pick(heads)) if heads else self.noun(kinds, definite, False, rich)
            # "I see us" and "you see you" would be reflexive.
            same = {phrase.index, subj.index} <= {0, 3} or phrase.index == subj.index == 1
            taken = (subj.head, subj.owner and subj.owner.head)
            if phrase.head not in taken and not (heads and same):
                return phrase

    def clause(self, tense: str = "", subj: NP | None = None, plain: bool = False, ask: str | None = None) -> Clause:
        """plain: without time, frequency, owners and relative clauses; ask: the question word of a question."""
        while True:
            verb = VERB[key := self.pick(_VERBS)]
            if subj and subj.head in NOUN and NOUN[subj.head].kind not in verb.subjects:
                continue
            if ask == "where" and ("n" in verb.flags or key == "stay"):
                continue
            time_of = tense or self.pick(("pres", "pres", "prog", "past", "past", "fut"))
            if time_of == "prog" and "s" in verb.flags:
                time_of = "pres"
            semi = ""
            if time_of in ("pres", "past") and self.chance(18):
                semi = self.pick(("can", "must", "want", "try", "hope", "begin", "promise"))
                if time_of == "past" and not SEMIS[semi].zu:
                    semi = ""
            if semi and SEMIS[semi].zu and "s" in verb.flags:
                semi = ""
            neg = ask is None and time_of != "prog" and semi not in ("must", "try", "hope", "begin", "promise")
            neg = neg and self.chance(20)
            who = subj or self.someone(verb.subjects, neg, not plain)
            if semi in ("hope", "promise", "want", "try") and who.head in NOUN and NOUN[who.head].kind == "A":
                continue
            if who.rel and neg:
                neg = False
            if not (semi or neg or ask is not None) and _unclear(verb, who, time_of):
                continue
            break
        often = ()
        if not plain and not neg and not semi and time_of in ("pres", "past") and self.chance(15):
            often = self.pick(OFTENS)
        obj = to = None
        rich = not plain and not who.rel
        negative = neg or bool(often) and often[2] == "jamais"
        if verb.objects:
            accusative = verb.case == "A" and not verb.prep
            definite = "d" in verb.flags or negative and not accusative
            obj = self.object(verb.objects, who, definite, rich and not negative)
            if negative and (obj.det == "many" or obj.det in NUMBER):
                obj = replace(obj, det="the")
            if "1" in verb.flags:
                obj = replace(obj, plural=False)
            if "2" in verb.flags:
                to = self.object("PK", who, True, False)
        busy = plain or bool(who.rel or obj and obj.rel)
        manner = ()
        if "s" not in verb.flags and not neg and not often and not busy and not to and self.chance(12):
            manner = self.pick(MANNER)
        place = None
        at_place = bool(obj and obj.head in NOUN and NOUN[obj.head].kind in "LHG")
        if "n" not in verb.flags and not at_place and ask != "where" and not (obj and obj.rel):
            if key == "stay" or self.chance(12 if busy or to else 25):
                place = replace(self.noun("LHG", True), plural=False)
        time, front = (), False
        if not busy and not often and time_of != "prog" and ask != "when" and self.chance(30):
            front = ask is None and self.chance(45)
            if front or not (semi and SEMIS[semi].zu):
                time = self.pick(TIME[time_of])
        return Clause(who, key, obj, to, time_of, semi, neg, often, manner, place, time, front)

    def being(self, tense: str = "", subj: NP | None = None, plain: bool = False) -> Clause:
        who = subj or self.someone(self.pick(("PKA", "TEOCVR", "LHG", "FMD")), True, not plain)
        kind = NOUN[who.head].kind if who.head in NOUN else "P"
        tense = tense or self.pick(("pres", "pres", "past", "fut"))
        neg = not who.rel and self.chance(25)
        time = self.pick(TIME[tense]) if tense != "pres" and not plain and not who.rel and self.chance(30) else ()
        front = bool(time) and self.chance(45)
        who = replace(who, adj="") if who.adj and self.chance(80) else who
        rest = dict(tense=tense, neg=neg, time=time, front=front)
        way = self.pick("aaacl")
        if way == "l" and kind not in "LHG":
            return Clause(who, "be", place=replace(self.noun("LHG", True), plural=False), **rest)
        if way == "c":
            adj = self.pick(_COMPARED_OF[kind])
            than = self.object(kind, who, True, False)
            if than.adj != adj and who.adj != adj:
                return Clause(who, "be", adj=adj, than=than, **rest)
        adj = self.pick([adj for adj in _ADJECTIVES_OF[kind] if adj != who.adj])
        return Clause(who, "be", adj=adj, **rest)

    def sentence(self) -> tuple[str, str, str]:
        shape = self.pick(_SHAPES)
        if shape == "simple":
            return statement(self.clause())
        if shape == "is":
            return statement(self.being())
        if shape == "asks":
            ask = self.pick(ASK) if self.chance(55) else ("", "", "")
            return question(self.clause(ask=ask[0]), ask)
        either = self.being if self.chance(30) else self.clause
        if shape == "because":
            tense = self.pick(("pres", "past", "fut"))
            return because(self.clause(tense, plain=True), either("past" if tense == "past" else "pres", plain=True))
        if shape == "says":
            return says(self.someone("PK", True), self.pick(list(SAY)), either(plain=self.chance(60)))
        if shape == "when":
            word, tense = self.pick((("when", "pres"), ("if", "fut")))
            return when(either("pres", plain=True), self.clause(tense, plain=True), word)
        tense = self.pick(("pres", "past"))
        return but(self.clause(tense, plain=True), either(tense, plain=True))


def _unclear(verb: Verb, subj: NP, tense: str) -> bool:
    """Whether English doesn't tell past from present ("they read")."""
    return tense in ("pres", "past") and verb.en[0] == verb.en[2] and subj.index != 2


def generate(counts: Mapping[str, int], seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """Splits of (English, German, French) sentences, no sentence of any language twice in them all.

    Each split has a stream of its own, and those named first come first: save for the few sentences that were taken
    already, a split does not depend on the size of another. Raises InputError where more is asked for than is sensible.
    """
    for split, count in counts.items():
        if count < 1:
            raise InputError(f"corpus grammar: {split} is {count}; ask for 1 sentence or more")
    if (total := sum(counts.values())) > MOST:
        raise InputError(f"corpus grammar: {total:,} sentences asked for; it makes {MOST:,} at most, ask for fewer")
    seen, splits = set(), {}
    for split, count in counts.items():
        draw, triples = _Draw(seed, split), []
        while len(triples) < count:
            triple = draw.sentence()
            keys = {f"{language}:{text}" for language, text in zip(LANGUAGES, triple, strict=True)}
            if seen.isdisjoint(keys):
                seen |= keys
                triples.append(triple)
        splits[split] = triples
    return splits
