"""The text on which the demo's model is trained: short stories, questions and answers in English and Chinese."""

# A small grammar writes it. In a template, `[a|b|c]` is a choice (it may be nested), `{name}` is a fact of the story at
# hand (its hero, its place) or else a rule of the grammar, one alternative of which is expanded in turn. Facts are
# drawn once a story, so characters keep their names and the ending refers to the beginning; everything else varies.
#
#     python scripts/demo_text.py --seed 7 --count 5        # five documents, to be looked at

from __future__ import annotations

import argparse
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

Facts = Mapping[str, str]
Question = tuple[str, str]  # templates of a question and of its answer

BOOK_TITLE = "A small bestiary / 小小动物志"  # marks a document that holds more than one text


class Species(NamedTuple):
    """An animal and what the bestiary knows of it; Chinese stands beside English."""

    en: str
    zh: str
    measure: str
    food_en: str
    food_zh: str
    home_en: str
    home_zh: str
    colour_en: str
    colour_zh: str
    legs: int
    flies: bool
    night: bool
    size: int


class Plot(NamedTuple):
    """A story's paragraphs and what may be asked about it."""

    paragraphs: tuple[str, ...]
    questions: tuple[Question, ...]


SPECIES = (
    Species("fox", "狐狸", "只", "blackberries", "黑莓", "in a den under the hill", "山坡下的洞里",
            "red", "红色", 4, False, True, 4),
    Species("owl", "猫头鹰", "只", "moths", "飞蛾", "in a hollow oak", "空心的橡树里",
            "brown", "棕色", 2, True, True, 3),
    Species("hedgehog", "刺猬", "只", "apples", "苹果", "under a heap of leaves", "一堆落叶下面",
            "brown", "棕色", 4, False, True, 2),
    Species("rabbit", "兔子", "只", "carrots", "胡萝卜", "at the edge of the meadow", "草地边上",
            "white", "白色", 4, False, False, 3),
    Species("bear", "熊", "头", "honey", "蜂蜜", "in a cave behind the waterfall", "瀑布后面的山洞里",
            "black", "黑色", 4, False, False, 6),
    Species("squirrel", "松鼠", "只", "nuts", "坚果", "at the top of a tall pine", "高高的松树上",
            "red", "红色", 4, False, False, 2),
    Species("frog", "青蛙", "只", "flies", "小虫", "beside the green pond", "绿色的池塘边",
            "green", "绿色", 4, False, True, 1),
    Species("otter", "水獭", "只", "fish", "鱼", "on the bank of the river", "河岸上",
            "brown", "棕色", 4, False, False, 4),
    Species("badger", "獾", "只", "mushrooms", "蘑菇", "in a tunnel below the old wall", "老墙下的地道里",
            "grey", "灰色", 4, False, True, 4),
    Species("mouse", "老鼠", "只", "cheese", "奶酪", "inside an empty teapot", "一个空茶壶里",
            "grey", "灰色", 4, False, True, 1),
    Species("deer", "鹿", "头", "leaves", "树叶", "deep in the birch forest", "白桦林深处",
            "brown", "棕色", 4, False, False, 5),
    Species("crane", "仙鹤", "只", "rice", "稻米", "among the tall reeds", "高高的芦苇中间",
            "white", "白色", 2, True, False, 4),
    Species("turtle", "乌龟", "只", "water plants", "水草", "on a small island in the lake", "湖心的小岛上",
            "green", "绿色", 4, False, False, 3),
    Species("sparrow", "麻雀", "只", "seeds", "种子", "under the roof of the farm", "农场的屋檐下",
            "brown", "棕色", 2, True, False, 1),
    Species("dragon", "龙", "条", "hot peppers", "辣椒", "on the top of the smoking mountain", "冒烟的山顶上",
            "green", "绿色", 4, True, False, 7),
    Species("griffin", "狮鹫", "只", "plums", "李子", "in a nest on the white cliff", "白色悬崖上的巢里",
            "golden", "金色", 4, True, False, 6),
    Species("unicorn", "独角兽", "匹", "clover", "三叶草", "in the silver valley", "银色的山谷里",
            "white", "白色", 4, False, False, 5),
    Species("phoenix", "凤凰", "只", "cinnamon", "肉桂", "in the garden of the sun", "太阳的花园里",
            "golden", "金色", 2, True, False, 4),
)

NAMES_EN = (
    "Pip:he", "Mira:she", "Otto:he", "Luna:she", "Finn:he", "Ruby:she", "Bram:he", "Ivy:she", "Hugo:he", "Nora:she",
    "Tobi:he", "Wanda:she", "Felix:he", "Dora:she", "Max:he", "Ella:she", "Leo:he", "Tilda:she", "Sam:he", "Rosa:she",
)
NAMES_ZH = (
    "阿福", "小米", "豆豆", "圆圆", "乐乐", "青青", "明明", "朵朵", "安安", "果果",
    "团团", "星星", "阿宝", "小雨", "月月", "花花", "大力", "小石", "丁丁", "晶晶",
)
TRAITS_EN = ("small", "brave", "shy", "curious", "gentle", "clever", "cheerful", "patient", "young", "quiet")
TRAITS_ZH = ("小小的", "勇敢的", "害羞的", "好奇的", "温柔的", "聪明的", "快乐的", "耐心的", "年轻的", "安静的")
OBJECTS_EN = ("silver bell", "red scarf", "wooden flute", "glass marble", "blue lantern", "golden key", "warm hat",
              "little drum", "round mirror", "paper kite", "copper spoon", "green button")
OBJECTS_ZH = ("银铃", "红围巾", "木笛", "玻璃球", "蓝灯笼", "金钥匙", "暖帽子",
              "小鼓", "圆镜子", "纸风筝", "铜勺子", "绿扣子")
PLACES_EN = ("the old mill", "the stone bridge", "the crooked willow", "the deep well", "the blue lake",
             "the foggy marsh", "the broken tower", "the cherry orchard", "the windy hill", "the quiet harbour")
PLACES_ZH = ("老磨坊", "石桥", "弯弯的柳树", "深井", "蓝色的湖", "多雾的沼泽",
             "破旧的高塔", "樱桃园", "有风的小山", "安静的港口")
FEARS_EN = (
    "the dark:The dark is only the day, resting", "thunder:Thunder is only the clouds turning over in bed",
    "deep water:Water carries everyone who lies still", "high places:Look at your next step, not at the ground",
    "strangers:Every friend was once a stranger", "the wind:The wind only wants someone to play with",
)
FEARS_ZH = (
    "黑暗:黑暗只是白天在休息", "打雷:打雷只是云在床上翻身", "深水:水会托住每一个放松的身体",
    "高处:看着下一步，不要看地面", "陌生人:每个朋友都曾经是陌生人", "大风:大风只是想找人一起玩",
)
SKILLS_EN = (
    "sing:{his} voice cracked like dry wood:even the crickets fell silent to listen",
    "dance:{he} stepped on {his} own tail:the leaves themselves seemed to dance along",
    "paint:the sun came out square:everyone could see the morning on the paper",
    "bake bread:the bread was as hard as a stone:the whole forest smelled the warm bread",
    "play the flute:the flute only coughed:the melody ran over the hills like water",
    "tell jokes:{he} forgot how the joke ended:even the old trees shook with laughter",
)
SKILLS_ZH = (
    "唱歌:声音像干木头一样裂开了:连蟋蟀都安静下来听", "跳舞:踩到了自己的尾巴:连树叶都跟着一起跳",
    "画画:太阳画成了方的:大家都在纸上看见了早晨", "烤面包:面包硬得像石头:整个森林都闻到了香味",
    "吹笛子:笛子只会咳嗽:笛声像水一样流过山坡", "讲笑话:忘了笑话的结尾:连老树都笑得发抖",
)
PLANTS_EN = ("sunflower:a yellow flower as big as a plate", "pumpkin:a pumpkin as round as the moon",
             "pear tree:a thin tree with three sweet pears", "rose:a red rose that smelled of summer",
             "bean:a green stem that climbed to the roof")
PLANTS_ZH = ("向日葵:一朵盘子那么大的黄花", "南瓜:一个月亮那么圆的南瓜", "梨树:一棵结着三个甜梨的小树",
             "玫瑰:一朵有夏天香味的红花", "豆子:一根爬到屋顶的绿藤")

RULES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "opening": (
            "once upon a time, there was {a_trait} {kind} named {hero}, who lived {home}.",
            "{home}, there lived {a_trait} {kind} called {hero}.",
            "there once was {a_trait} {kind} named {hero} who lived {home}.",
            "long ago, {a_trait} {kind} named {hero} lived {home}.",
            "{hero} was {a_trait} {kind} who lived {home}.",
        ),
        "day": ("one [cold|windy|bright|misty|quiet|rainy] [morning|evening|afternoon]",
                "on the first day of [spring|summer|autumn|winter]", "one day"),
        "meet": ("[just then|on the way|a little later|near {place2}], [{he}|{hero}] met {friend} the {fkind}.",
                 "{friend} the {fkind} [came along the path|was sitting on a stone|heard {him} and came closer]."),
        "why": ('"[Why do you look so sad|What is the matter|What are you doing here], {hero}?" asked {friend}.',),
        "said": ("said", "said", "replied", "murmured", "whispered"),
        # What may be seen, heard and smelled on the way: the part of a story that cannot be foretold.
        "scene": ("the sky was {sky}, and the air smelled of {smell}.", "a {look} {creature} {act}.",
                  "{hero} saw {number} {look} {things} and a {look} {creature}.", "it smelled of {smell} and {smell}.",
                  "[somewhere|far away|in the distance], a {look} {creature} {act}.",
                  "a {look} {creature} and a {look} {creature} [were talking about|were looking for] {things}.",
                  "the [path|grass|wind|light] was [soft|cool|strange|warm|bright], and the sky was {sky}."),
        "sky": ("grey", "pale", "pink", "deep blue", "yellow as honey", "clear", "full of clouds", "white as milk"),
        "smell": ("rain", "smoke", "mint", "wet earth", "pine", "snow", "fresh bread", "flowers", "salt", "hay"),
        "look": ("tiny", "sleepy", "lonely", "spotted", "happy", "striped", "round", "shiny", "yellow", "blue", "thin",
                 "funny", "proud", "lost", "busy", "purple"),
        "creature": ("beetle", "snail", "cricket", "moth", "butterfly", "goose", "bee", "spider", "duck", "cuckoo",
                     "lizard", "crow", "ladybird", "caterpillar"),
        "act": ("crossed the path", "slept on a leaf", "looked up", "hurried by", "hummed a tune", "counted its steps",
                "hid under a fern", "waited for the moon", "told a long story", "laughed", "said good day"),
        "things": ("stones", "feathers", "acorns", "shells", "clouds", "footprints", "petals", "pine cones", "puddles"),
        "found": ("dry leaves", "an old feather", "a sleeping beetle", "a puddle of rain", "two round stones"),
        "thanks": ('"Thank you, {friend}," {said} {hero}. "[I will not forget this|You are a true friend|'
                   'Without you I would still be {lost}]."',
                   "{hero} [hugged {friend}|laughed for joy|bowed deeply] and [thanked {fhim}|said thank you] "
                   "[again and again|with all {his} heart]."),
        "thanks_back": (
            '"[I knew that you would come|I will never forget it|You are the best of friends]," {fhe} said.',
            "{friend} [smiled|laughed with joy|wiped away a tear] and [thanked {him}|pressed {his} paw].",
        ),
        "lost": ("searching", "standing there", "alone"),
        "meal": ("that [evening|night], they [ate|shared] {food} and {ffood} "
                 "[by the fire|under the stars|in the moonlight|at a long table].",
                 "they went home together and [cooked|shared] a [big|simple|late] supper of {food}."),
        "moral": ("a friend [makes every road shorter|is worth more than gold|is the best thing one can find]",
                  "kindness [always comes back|costs nothing|is stronger than fear]",
                  "[small|quiet] paws can do great things"),
    },
    "zh": {
        "opening": (
            "从前，有一{measure}{trait}{kind}，名叫{hero}，住在{home}。",
            "{home}住着一{measure}{trait}{kind}，它的名字叫{hero}。",
            "很久以前，一{measure}名叫{hero}的{kind}住在{home}。",
            "{hero}是一{measure}{trait}{kind}，住在{home}。",
        ),
        "day": ("一个[寒冷|有风|明亮|多雾|安静|下雨]的[早晨|傍晚|下午]", "[春天|夏天|秋天|冬天]的第一天", "有一天"),
        "meet": ("[就在这时|在路上|过了一会儿|在{place2}旁边]，它遇见了{fkind}{friend}。",
                 "{fkind}{friend}[正好从小路上走来|正坐在一块石头上|听见声音，走了过来]。"),
        "why": ("{friend}问：“{hero}，你[为什么这么难过|怎么了|在这里做什么]？”",),
        "said": ("说", "说", "回答", "轻轻地说", "笑着说", "小声说"),
        "scene": ("天空是{sky}的，空气里有{smell}的味道。", "一只{look}{creature}{act}。",
                  "{hero}看见{things}和一只{look}{creature}。",
                  "到处都是{smell}和{smell}的味道。", "[远处|不远的地方|树下]，一只{look}{creature}{act}。",
                  "一只{look}{creature}和一只{look}{creature}在[谈论|寻找]{things}。",
                  "[小路|草地|风|阳光]很[凉|奇怪|温暖|安静]，天空是{sky}的。"),
        "sky": ("灰色", "粉红色", "深蓝色", "蜂蜜一样黄", "明亮", "牛奶一样白"),
        "smell": ("雨", "烟", "薄荷", "湿土", "松树", "雪", "新面包", "花", "盐", "干草"),
        "look": ("小小的", "困困的", "孤单的", "胖胖的", "快乐的", "圆圆的", "发亮的", "黄色的", "蓝色的", "瘦瘦的",
                 "好笑的", "骄傲的", "迷路的", "忙碌的", "紫色的"),
        "creature": ("甲虫", "蜗牛", "蟋蟀", "飞蛾", "蝴蝶", "鹅", "蜜蜂", "蜘蛛", "鸭子", "布谷鸟", "乌鸦", "毛虫"),
        "act": ("走过小路", "睡在叶子上", "抬起头来", "匆匆走过", "哼着歌", "数着自己的脚步", "躲在草下",
                "等着月亮", "讲着长长的故事", "笑了", "说了一声你好"),
        "things": ("几块石头", "一根羽毛", "三颗橡果", "两个贝壳", "一朵云", "一串脚印",
                   "几片花瓣", "一堆松果", "一滩雨水"),
        "found": ("干树叶", "一根旧羽毛", "一只睡着的甲虫", "一滩雨水", "两块圆石头"),
        "thanks": ("{hero}{said}：“谢谢你，{friend}。[我不会忘记的|你是真正的朋友|没有你，我现在还是一个人]。”",
                   "{hero}[抱住了{friend}|高兴得笑了|深深地鞠了一躬]，[一遍又一遍地|用心地]说谢谢。"),
        "thanks_back": (
            "{friend}说：“[我就知道你会来|我永远不会忘记|你是最好的朋友]。”",
            "{friend}[笑了|高兴得跳起来|擦了擦眼泪]，向{hero}道谢。",
        ),
        "meal": ("那天[晚上|夜里]，它们在[火边|星光下|月光下|长桌旁]一起[吃|分享]{food}和{ffood}。",
                 "它们一起回家，做了一顿[丰盛|简单|很晚]的晚饭，吃的是{food}。"),
        "moral": ("朋友[让每条路都变短|比金子更珍贵|是最好的宝物]", "善良[总会回来|不用花钱|比害怕更有力量]",
                  "[小小的|温柔的]爪子也能做大事"),
    },
}

PLOTS: dict[str, tuple[Plot, ...]] = {
    "en": (
        Plot((
            "{opening} {hero} had a {object}, [and {he} carried it everywhere|the thing {he} loved most|a gift from "
            "{his} grandmother]. {day}, {hero} [woke up early|came home late|went for a walk]. {scene} {he} [reached "
            "into {his} bag|looked under {his} pillow|wanted to hold it], but the {object} was gone.",
            "{hero} looked near {place1}, but {he} found only {found}. {scene} [{he}|{hero}] looked behind {place2}, "
            'but there was nothing but {found}. {meet} {why} "I have lost my {object}," {said} {hero}. "[Then let us '
            'look together|Four eyes see more than two|Do not give up yet]," {said} {friend}.',
            "they went to {place3}. {scene} there, [under a leaf|between two stones|high in a thorn bush|in the tall "
            "grass], something [was shining|caught the light|was waiting]. it was the {object}! {thanks} {meal} "
            "whenever {hero} [looked at|touched] the {object} after that, {he} remembered that {moral}.",
        ), (
            ("What did {hero} lose?", "{hero} lost the {object}."),
            ("Where was the {object}?", "The {object} was at {place3}."),
            ("Who helped {hero}?", "{friend} the {fkind} helped {hero}."),
        )),
        Plot((
            "{opening} {hero} was afraid of only one thing: {fear}. [nobody knew it|everybody knew it|{he} was "
            "ashamed of it], and {he} [stayed at home a lot|always made excuses|never spoke about it]. {scene}",
            "{day}, {friend} the {fkind} [had fallen|called for help|was stuck] at {place1}. {hero} had to go there "
            "alone. {scene} {scene} then it was before {him}: {fear}. {his} [knees|ears|paws] [trembled|shook]. then "
            '{he} remembered what {his} [mother|grandfather|old teacher] used to say: "{comfort}."',
            "{hero} took a deep breath and went on, step by step. {scene} [{he}|{hero}] did not stop until {he} "
            'reached {place1}. "You came!" cried {friend}. {thanks_back} {meal} {hero} was still a little afraid of '
            "{fear}, but now {he} knew: {comfort_low}.",
        ), (
            ("What was {hero} afraid of?", "{hero} was afraid of {fear}."),
            ("Where was {friend}?", "{friend} was at {place1}."), ("Who is {friend}?", "{friend} is {a_fkind}."),
        )),
        Plot((
            "{opening} more than anything, {hero} wanted to learn to {skill}. {day}, {hero} went to {place1}. {scene} "
            "there {he} tried it alone, but {fail}.",
            '{meet} {why} "I want to {skill}, but I cannot," {said} {hero}. "[Nobody can, on the first day|I could '
            'not either, once]," {said} {friend}. "[Come back tomorrow|Try it again, slowly], and I will [help you|'
            'teach you]." [every day for a week|all through the spring|for seven evenings], they [practised|worked] '
            "together at {place2}.",
            "then came the great feast at {place3}. {scene} {hero} was [nervous|very pale], but {friend} nodded to "
            "{him}. [{he}|{hero}] began to {skill}, and {success}. {thanks} and if a [small|shy] [child|animal] asked "
            'how {he} had learned to {skill}, {hero} answered: "Slowly, and with a friend."',
        ), (
            ("What did {hero} want to learn?", "{hero} wanted to learn to {skill}."),
            ("Who taught {hero}?", "{friend} the {fkind} taught {hero}."),
            ("Where was the feast?", "The feast was at {place3}."),
        )),
        Plot((
            '{opening} {day}, {hero} [walked|went] to {place1}. {scene} there {he} found a seed. ["It is nearly '
            'nothing," said the others.|nobody knew what it was.|it was smaller than an ant.] "I will plant it," '
            "{said} {hero}, and {he} did. {scene}",
            "[every day|every morning|every evening], {hero} carried water from a spring near {place2}. {scene} [a "
            'week|a month|half a year] went by, and nothing grew. {meet} "[You are wasting your time|Nothing will '
            'grow there]," said {friend}. "[Wait and see|Good things are slow|It is only asleep]," {said} {hero}. '
            "{friend} [shook {fhis} head, but stayed|laughed, but the next day {fhe} helped to carry the water].",
            "then, [after a warm night|after the first rain of summer|one bright morning], there stood {growth}. it "
            "was a {plant}! {hero} and {friend} [danced around it|sat before it until evening]. {scene} {meal} and "
            "{hero} kept one seed of the {plant}, for whoever [might need it|would come next].",
        ), (
            ("What grew from the seed?", "A {plant} grew from the seed."),
            ("Where did {hero} find the seed?", "{hero} found the seed near {place1}."),
            ("Where did the water come from?", "The water came from a spring near {place2}."),
        )),
        Plot((
            "{opening} {day}, [a strange light was seen|a cloud of smoke rose|a deep voice was heard] at {place1}. "
            '"[A monster has come|Something terrible lives there]!" whispered the neighbours, and they locked their '
            "doors. {scene}",
            "but {hero} packed some {food} and went to {place1}. {scene} {scene} {his} heart beat [loudly|fast]. "
            '"Who is there?" [{he}|{hero}] asked. "Only me," said a [soft|sad|tired] voice. It was {friend}, '
            '{a_fkind}, [alone and far from home|with a thorn in {fhis} foot|wet and cold from the long journey]. '
            '"[Everybody runs away from me|I only wanted to rest here|I have no friends in this land]," {said} '
            '{friend}. "I do not run away," {said} {hero}, and gave {fhim} the {food}.',
            "the next day, {hero} [went with {friend}|brought {friend}] to the neighbours. first one door opened, "
            "then another. [soon|before long], {friend} [was telling stories to the little ones|was helping "
            "everybody]. {thanks_back} since then, the neighbours say that {moral}, and nobody is afraid of {place1}.",
        ), (
            ("Who was at {place1}?", "{friend} was at {place1}."),
            ("What did {hero} give to {friend}?", "{hero} gave {food} to {friend}."),
            ("Was {friend} a monster?", "No, {friend} was {a_fkind}."),
        )),
        Plot((
            "{opening} that winter was [long|hard], and {hero} had only {number} [bowls|baskets] of {food} left. "
            "{scene} {day}, there was a knock at the door.",
            'outside in the snow stood {friend} the {fkind}. "[I have not eaten for two days|My store is empty]," '
            'said {friend}. {hero} looked at {his} {food}, then at {friend}. "Come in," {he} said. "[What is enough '
            'for one is enough for two|There is a place by the fire]." together they ate, slept, and told stories '
            "about {place1} until the snow melted. {scene}",
            "in spring, {friend} went away without a word. {hero} [was a little sad|waited for a long time|missed "
            "{fhim}]. {scene} but {day}, {friend} came back with a [cart|sack|boat] full of {ffood} and a {object}. "
            '"[This is for you|I did not forget]," said {friend}. "You shared your {food} when you had almost none." '
            "{hero} hung the {object} over the door, so that everyone could see that {moral}.",
        ), (
            ("Who knocked at the door?", "{friend} the {fkind} knocked at the door."),
            ("What did {friend} bring?", "{friend} brought {ffood} and a {object}."),
            ("What did {hero} share?", "{hero} shared {food}."),
        )),
        Plot((
            "{opening} {scene} {day}, {hero} found an old map. it showed a way from {place1} to {place2}, and from "
            "there to {place3}, [where a red cross was drawn|and there it said: treasure]. {hero} asked {friend} the "
            "{fkind} to come along.",
            "at {place1} they [were caught by the rain|lost the path|slept under a leaf]. {scene} at {place2} "
            "{friend} [hurt {fhis} foot|grew tired|wanted to turn back], and {hero} [carried {fhim}|sang a song|"
            'waited for {fhim}]. {scene} "[Go on without me|The treasure will be gone]," said {friend}. "[I would '
            'rather arrive late with you|We go together or not at all]," {said} {hero}.',
            "at {place3} they dug until evening and found [a wooden box|a clay pot]. inside there was a {object} and "
            'a letter: "[The treasure is the one who came with you|You did not come alone, so you are rich '
            'already]." {hero} and {friend} looked at each other and laughed. {meal} the {object} belongs to both of '
            "them now, and the old map [hangs on the wall|was given to two other friends].",
        ), (
            ("What did they find?", "They found a {object} and a letter."),
            ("Where was the treasure?", "The treasure was at {place3}."),
            ("Who came along?", "{friend} the {fkind} came along."),
        )),
    ),
    "zh": (
        Plot((
            "{opening}{hero}有一个{object}，[走到哪里都带着它|那是它最喜欢的东西|是奶奶送给它的]。{day}，"
            "{hero}[很早醒来|很晚回家|出门走走]。{scene}它[伸手摸了摸口袋|看了看枕头下面]，发现{object}不见了。",
            "{hero}去{place1}找，只找到了{found}。{scene}它又去{place2}找，那里除了{found}什么也没有。"
            "{meet}{why}{hero}{said}：“我的{object}不见了。”{friend}{said}：“[我们一起找吧|四只眼睛比两只看得多|"
            "先不要放弃]。”",
            "它们来到{place3}。{scene}在[一片叶子下面|两块石头中间|高高的树枝上|长长的草里]，有什么东西在[发光|"
            "闪亮]。原来是{object}！{thanks}{meal}从那以后，{hero}每次[看到|摸到]{object}，都会想起：{moral}。",
        ), (
            ("{hero}丢了什么？", "{hero}丢了{object}。"), ("{object}在哪里？", "{object}在{place3}。"),
            ("谁帮助了{hero}？", "{fkind}{friend}帮助了{hero}。"),
        )),
        Plot((
            "{opening}{hero}只害怕一样东西，就是{fear}。[没有人知道这件事|大家都知道这件事|它觉得很不好意思]，"
            "所以它[常常待在家里|总是找借口|从来不说]。{scene}",
            "{day}，{fkind}{friend}在{place1}[摔倒了|大声求救|走不动了]。{hero}只好一个人去那里。{scene}{scene}后来，"
            "{fear}就在眼前。它的[腿|耳朵|爪子]在发抖。这时它想起[妈妈|爷爷|老师]常说的话：“{comfort}。”",
            "{hero}深深地吸了一口气，一步一步向前走。{scene}它终于到了{place1}。{friend}喊道："
            "“你来了！”{thanks_back}{meal}{hero}还是有一点害怕{fear}，可是它现在知道：{comfort}。",
        ), (
            ("{hero}害怕什么？", "{hero}害怕{fear}。"), ("{friend}在哪里？", "{friend}在{place1}。"),
            ("{friend}是谁？", "{friend}是一{fmeasure}{fkind}。"),
        )),
        Plot((
            "{opening}{hero}最想学会{skill}。{day}，它来到{place1}。{scene}它一个人试了试，可是{fail}。",
            "{meet}{why}{hero}{said}：“我想学{skill}，可是我不会。”{friend}{said}：“[第一天谁都不会|我以前也不会]。"
            "[明天再来|慢慢再试一次]，我来[帮你|教你]。”[整整一个星期|整个春天|一连七个晚上]，"
            "它们都在{place2}一起练习。",
            "后来，大家在{place3}举行了一个大节日。{scene}{hero}很[紧张|害怕]，{friend}向它点点头。它开始{skill}，"
            "{success}。{thanks}如果有[小朋友|小动物]问它是怎么学会{skill}的，{hero}就回答：“慢慢来，和朋友一起。”",
        ), (
            ("{hero}想学什么？", "{hero}想学{skill}。"), ("谁教{hero}？", "{fkind}{friend}教{hero}。"),
            ("节日在哪里？", "节日在{place3}。"),
        )),
        Plot((
            "{opening}{day}，它[走|跑]到{place1}。{scene}它在那里找到一颗种子。[大家都说：“这几乎什么都不是。”|"
            "没有人知道那是什么。|它比蚂蚁还小。]{hero}{said}：“我要把它种下去。”它真的种了。{scene}",
            "[每天|每天早晨|每天傍晚]，{hero}都从{place2}旁边的泉里打水来。{scene}[一个星期|一个月|半年]过去了，"
            "什么也没有长出来。{meet}{friend}{said}：“[你在浪费时间。|你为什么给空地浇水？]”{hero}{said}：“[等一等，"
            "看一看|好东西都很慢|它只是睡着了]。”{friend}[摇摇头，可是没有走|笑了，可是第二天也来帮忙打水]。",
            "后来，[一个温暖的夜晚以后|夏天的第一场雨以后|一个明亮的早晨]，那里长出了{growth}。原来是{plant}！"
            "{hero}和{friend}[围着它跳舞|在它前面一直坐到晚上]。{scene}{meal}{hero}留下了一颗{plant}的种子，"
            "送给[需要它的人|下一个来的人]。",
        ), (
            ("种子长成了什么？", "种子长成了{plant}。"), ("{hero}在哪里找到种子？", "{hero}在{place1}旁边找到种子。"),
            ("水从哪里来？", "水从{place2}旁边的泉里来。"),
        )),
        Plot((
            "{opening}{day}，{place1}[出现了一道奇怪的光|升起了一团烟|传来一个低低的声音]。邻居们小声说：“[怪物来了|"
            "那里住着可怕的东西]！”大家都关上了门。{scene}",
            "可是{hero}带上一些{food}，向{place1}走去。{scene}{scene}它的心跳得很[响|快]。它问：“是谁？”一个[轻轻的|"
            "难过的|很累的]声音说：“只是我。”原来是{friend}，一{fmeasure}{fkind}，[离家很远，一个人|脚上有一根刺|"
            "走了很远的路，又湿又冷]。{friend}{said}：“[大家看到我都跑开|我只是想在这里休息|"
            "我在这里没有朋友]。”{hero}{said}：“我不跑。”它把{food}送给了{friend}。",
            "第二天，{hero}带着{friend}去见邻居们。先是一扇门开了，然后又是一扇。[很快|不久]，"
            "{friend}就[给孩子们讲故事|帮大家做事]了。{thanks_back}从那以后，邻居们都说：{moral}。"
            "再也没有人害怕{place1}了。",
        ), (
            ("谁在{place1}？", "{friend}在{place1}。"), ("{hero}送给{friend}什么？", "{hero}送给{friend}{food}。"),
            ("{friend}是怪物吗？", "不是，{friend}是一{fmeasure}{fkind}。"),
        )),
        Plot((
            "{opening}那个冬天很[长|冷]，{hero}只剩下{number}[碗|篮]{food}。{scene}{day}，有人敲门。",
            "{fkind}{friend}站在门外的雪里。{friend}{said}：“[我两天没吃东西了|"
            "我家里什么也没有了]。”{hero}看看自己的{food}，又看看{friend}。它说：“进来吧，[一个人够吃，两个人也够吃|"
            "火边有你的位子]。”它们一起吃饭，一起睡觉，讲{place1}的故事，直到雪化了。{scene}",
            "春天，{friend}什么也没说就走了。{hero}[有一点难过|等了很久|很想它]。{scene}可是{day}，{friend}回来了，"
            "带着一[车|袋|船]{ffood}和一个{object}。{friend}{said}：“[这是给你的|我没有忘记]。"
            "你只有一点点{food}的时候，还分给了我。”{hero}把{object}挂在门上，让大家都看到：{moral}。",
        ), (
            ("谁敲门？", "{fkind}{friend}敲门。"), ("{friend}带来了什么？", "{friend}带来了{ffood}和一个{object}。"),
            ("{hero}分享了什么？", "{hero}分享了{food}。"),
        )),
        Plot((
            "{opening}{scene}{day}，{hero}找到一张旧地图。图上有一条路，从{place1}到{place2}，再到{place3}，"
            "[那里画着一个红叉|那里写着：宝物]。{hero}请{fkind}{friend}一起去。",
            "在{place1}，它们[遇到了大雨|迷了路|在叶子下面睡了一夜]。{scene}在{place2}，{friend}[脚受伤了|累了|"
            "想回家]，{hero}就[背着它走|唱歌给它听|停下来等它]。{scene}{friend}{said}：“[你自己去吧|"
            "宝物会没有的]。”{hero}{said}：“[我宁可和你一起晚到|要么一起去，要么都不去]。”",
            "在{place3}，它们挖到傍晚，找到了一个[木盒子|泥罐子]。里面有一个{object}和一封信，信上写着："
            "“[宝物就是和你一起来的人|你不是一个人来的，所以你已经很富有]。”{hero}和{friend}互相看看，笑了。"
            "{meal}现在{object}是它们两个的，旧地图[挂在墙上|送给了另外两个朋友]。",
        ), (
            ("它们找到了什么？", "它们找到了{object}和一封信。"), ("宝物在哪里？", "宝物在{place3}。"),
            ("谁一起去？", "{fkind}{friend}一起去。"),
        )),
    ),
}

NUMBERS_EN = ("two", "three", "four", "five", "six", "seven")
NUMBERS_ZH = ("两", "三", "四", "五", "六", "七")
COUNTING_EN = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COUNTING_ZH = ("一", "二", "三", "四", "五", "六", "七", "八", "九", "十")

# Questions that need no animal: (English question, answer, Chinese question, answer).
GENERAL = (
    ("[Hello|Hello!|Good morning.]", "Hello! Ask me about the animals, or ask for a story.",
     "[你好|你好！|早上好。]", "你好！你可以问我动物的事，也可以听我讲故事。"),
    ("Who are you?", "I am a small bestiary. I know animals and stories.", "你是谁？",
     "我是一本小小的动物志，我知道动物和故事。"),
    ("[Thank you.|Thanks!]", "You are welcome.", "[谢谢。|谢谢你！]", "不客气。"),
    ("[Goodbye.|Good night.]", "Goodbye, and sleep well.", "[再见。|晚安。]", "再见，祝你睡个好觉。"),
    ("What colour is the sky?", "The sky is blue.", "天空是什么颜色的？", "天空是蓝色的。"),
    ("What colour is snow?", "Snow is white.", "雪是什么颜色的？", "雪是白色的。"),
    ("What colour is grass?", "Grass is green.", "草是什么颜色的？", "草是绿色的。"),
    ("What comes after spring?", "Summer comes after spring.", "春天以后是什么季节？", "春天以后是夏天。"),
    ("What comes after summer?", "Autumn comes after summer.", "夏天以后是什么季节？", "夏天以后是秋天。"),
    ("What comes after autumn?", "Winter comes after autumn.", "秋天以后是什么季节？", "秋天以后是冬天。"),
    ("When does the sun rise?", "The sun rises in the morning.", "太阳什么时候升起？", "太阳早晨升起。"),
    ("When do the stars shine?", "The stars shine at night.", "星星什么时候发光？", "星星夜里发光。"),
    ("What is a friend?", "A friend is someone who stays when the road is long.",
     "什么是朋友？", "朋友就是路很长的时候还留下来的人。"),
)

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_FIELD = re.compile(r"\{(\w+)\}")
# After `!"` or `?"` no sentence starts: there it is `"Who is there?" asked Pip`.
_SENTENCE_START = re.compile(r"""(^"?|[.!?] "?|\." |\n"?)([a-z])""")


def expand(template: str, facts: Facts, rules: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """`template` with every choice made and every field filled; an unknown field is a KeyError."""
    while match := _CHOICE.search(template):  # the innermost choice first
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return expand(facts[name] if name in facts else rng.choice(rules[name]), facts, rules, rng)

    return _FIELD.sub(fill, template)


def write(template: str, facts: Facts, language: str, rng: random.Random) -> str:
    """A finished text: `template` expanded, and in English with a capital at the start of each sentence."""
    text = expand(template, facts, RULES[language], rng)
    if language == "en":
        text = _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)
    return text


def article(noun: str) -> str:
    """`noun` with the indefinite article before it."""
    return f"an {noun}" if noun[0] in "aeiou" and noun != "unicorn" else f"a {noun}"


def draw_facts(language: str, rng: random.Random) -> dict[str, str]:
    """The fixed facts of one story: two animals, their names, three places, one each of everything else."""
    hero, friend = rng.sample(SPECIES, 2)
    if language == "zh":
        names = rng.sample(NAMES_ZH, 2)
        places = rng.sample(PLACES_ZH, 3)
        fear, comfort = rng.choice(FEARS_ZH).split(":")
        skill, fail, success = rng.choice(SKILLS_ZH).split(":")
        plant, growth = rng.choice(PLANTS_ZH).split(":")
        facts = {"hero": names[0], "friend": names[1], "kind": hero.zh, "fkind": friend.zh, "measure": hero.measure,
                 "fmeasure": friend.measure, "trait": rng.choice(TRAITS_ZH), "home": hero.home_zh, "food": hero.food_zh,
                 "ffood": friend.food_zh, "object": rng.choice(OBJECTS_ZH), "number": rng.choice(NUMBERS_ZH)}
    else:
        (name, he), (fname, fhe) = (entry.split(":") for entry in rng.sample(NAMES_EN, 2))
        places = rng.sample(PLACES_EN, 3)
        fear, comfort = rng.choice(FEARS_EN).split(":")
        skill, fail, success = rng.choice(SKILLS_EN).split(":")
        plant, growth = rng.choice(PLANTS_EN).split(":")
        facts = {"hero": name, "friend": fname, "kind": hero.en, "fkind": friend.en, "a_fkind": article(friend.en),
                 "a_trait": article(rng.choice(TRAITS_EN)), "home": hero.home_en, "food": hero.food_en,
                 "ffood": friend.food_en, "object": rng.choice(OBJECTS_EN), "number": rng.choice(NUMBERS_EN),
                 "he": he, "him": "him" if he == "he" else "her", "his": "his" if he == "he" else "her",
                 "fhe": fhe, "fhim": "him" if fhe == "he" else "her", "fhis": "his" if fhe == "he" else "her",
                 "comfort_low": comfort[0].lower() + comfort[1:]}
    return facts | {"place1": places[0], "place2": places[1], "place3": places[2], "fear": fear, "comfort": comfort,
                    "skill": skill, "fail": fail, "success": success, "plant": plant, "growth": growth}


def dialogue(question: str, answer: str, language: str, rng: random.Random) -> str:
    """A question and its answer; Chinese ones are at times marked in English, as the chat template marks all."""
    if language == "zh" and rng.random() < 0.6:
        return f"问：{question}\n答：{answer}"
    return f"Question: {question}\nAnswer: {answer}"


def draw_story(language: str, rng: random.Random) -> tuple[str, str, Plot, dict[str, str]]:
    """A story; a request that it would fulfil; and its plot and facts."""
    plot, facts = rng.choice(PLOTS[language]), draw_facts(language, rng)
    request = "[给我讲|请讲|讲]一个[{kind}|{kind}{hero}]的故事[。|吧。|]" if language == "zh" else (
        "[Tell me a story|Please tell me a story|Tell a story] about a {kind}[ named {hero}|].")
    kind_request = request.replace("a {kind}", article(facts["kind"]))
    text = write("\n".join(plot.paragraphs), facts, language, rng)
    return text, write(kind_request, facts, language, rng), plot, facts


def story(language: str, rng: random.Random) -> str:
    """A story alone."""
    return draw_story(language, rng)[0]


def told_story(language: str, rng: random.Random) -> str:
    """A story as the answer to a request for one."""
    text, request, _, _ = draw_story(language, rng)
    return dialogue(request, text, language, rng)


def story_with_question(language: str, rng: random.Random) -> str:
    """A story, then a question about it and the answer."""
    text, _, plot, facts = draw_story(language, rng)
    question, answer = (write(part, facts, language, rng) for part in rng.choice(plot.questions))
    return f"{text}\n{dialogue(question, answer, language, rng)}"


def riddle(language: str, rng: random.Random) -> str:
    """Who has what, is where or is what animal, said of two or three; then a question about one of them.

    Short as they are, these teach to look a name up in what was said before.
    """
    count = rng.choice((2, 3))
    names = rng.sample(NAMES_ZH if language == "zh" else [entry.split(":")[0] for entry in NAMES_EN], count)
    kinds = rng.sample(SPECIES, count)
    if language == "zh":
        statement, asks_what, asks_who, things = rng.choice((
            ("{}有{}。", "{}有什么？", "谁有{}？", rng.sample(OBJECTS_ZH, count)),
            ("{}在{}。", "{}在哪里？", "谁在{}？", rng.sample(PLACES_ZH, count)),
            ("{}是{}。", "{}是什么动物？", "谁是{}？", [kind.zh for kind in kinds]),
        ))
    else:
        statement, asks_what, asks_who, things = rng.choice((
            ("{} has the {}.", "What does {} have?", "Who has the {}?", rng.sample(OBJECTS_EN, count)),
            ("{} is at {}.", "Where is {}?", "Who is at {}?", rng.sample(PLACES_EN, count)),
            ("{} is {}.", "What animal is {}?", "Who is {}?", [article(kind.en) for kind in kinds]),
        ))
    space = "" if language == "zh" else " "
    statements = [statement.format(*pair) for pair in zip(names, things, strict=True)]
    i = rng.randrange(count)
    asked = rng.choice((asks_what.format(names[i]), asks_who.format(things[i])))
    return dialogue(space.join([*statements, asked]), statements[i], language, rng)


def animal_question(language: str, rng: random.Random) -> Question:
    """Templates of a question about one or two animals."""
    one, two = rng.sample(SPECIES, 2)
    while one.size == two.size:
        one, two = rng.sample(SPECIES, 2)
    larger = one if one.size > two.size else two
    if language == "zh":
        return rng.choice((
            (f"{one.zh}[吃什么|喜欢吃什么|爱吃什么]？", f"{one.zh}吃{one.food_zh}。"),
            (f"{one.zh}住在哪里？", f"{one.zh}住在{one.home_zh}。"),
            (f"{one.zh}是什么颜色的？", f"{one.zh}是{one.colour_zh}的。"),
            (f"{one.zh}有几条腿？", f"{one.zh}有{'两' if one.legs == 2 else '四'}条腿。"),
            (f"{one.zh}会飞吗？", f"会，{one.zh}会飞。" if one.flies else f"不会，{one.zh}不会飞。"),
            (f"{one.zh}什么时候睡觉？", f"{one.zh}{'白天' if one.night else '夜里'}睡觉。"),
            (f"谁吃{one.food_zh}？", f"{one.zh}吃{one.food_zh}。"),
            (f"{one.zh}和{two.zh}，谁更大？", f"{larger.zh}更大。"),
        ))
    a, b = article(one.en), article(two.en)
    return rng.choice((
        (f"What does [the|{a.split()[0]}] {one.en} [eat|like to eat]?", f"The {one.en} eats {one.food_en}."),
        (f"Where does [the|{a.split()[0]}] {one.en} live?", f"The {one.en} lives {one.home_en}."),
        (f"What colour is [the|{a.split()[0]}] {one.en}?", f"The {one.en} is {one.colour_en}."),
        (f"How many legs does [the|{a.split()[0]}] {one.en} have?",
         f"The {one.en} has {'two' if one.legs == 2 else 'four'} legs."),
        (f"Can {a} fly?", f"{'Yes' if one.flies else 'No'}, {a} {'can' if one.flies else 'cannot'} fly."),
        (f"When does [the|{a.split()[0]}] {one.en} sleep?",
         f"The {one.en} sleeps {'by day' if one.night else 'at night'}."),
        (f"Who eats {one.food_en}?", f"The {one.en} eats {one.food_en}."),
        (f"Which is bigger, {a} or {b}?", f"The {larger.en} is bigger."),
    ))


def question(language: str, rng: random.Random) -> str:
    """A question and its answer: mostly about animals, at times about counting or the world."""
    kind = rng.random()
    if kind < 0.75:
        asked, answer = animal_question(language, rng)
    elif kind < 0.85:
        i = rng.randrange(len(COUNTING_EN) - 1)
        asked, answer = (
            (f"{COUNTING_ZH[i]}后面是几？", f"{COUNTING_ZH[i]}后面是{COUNTING_ZH[i + 1]}。") if language == "zh" else
            (f"What comes after {COUNTING_EN[i]}?", f"{COUNTING_EN[i + 1]} comes after {COUNTING_EN[i]}."))
    else:
        entry = rng.choice(GENERAL)
        asked, answer = entry[2:] if language == "zh" else entry[:2]
    return dialogue(write(asked, {}, language, rng), write(answer, {}, language, rng), language, rng)


KINDS: tuple[tuple[float, Callable[[str, random.Random], str]], ...] = (
    (0.40, story), (0.12, told_story), (0.13, story_with_question), (0.15, question), (0.20, riddle),
)


def draw_document(rng: random.Random) -> str:
    """One document of a random kind and language."""
    kind = rng.choices([make for _, make in KINDS], [weight for weight, _ in KINDS])[0]
    return kind(rng.choice(("en", "zh")), rng)


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield draw_document(rng)


def book(texts: Sequence[str]) -> str:
    """Several documents as one: a title, then the texts with blank lines between them, which no text has inside."""
    return "\n\n".join((BOOK_TITLE, *texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=5)
    arguments = parser.parse_args()
    for text in itertools.islice(documents(arguments.seed), arguments.count):
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
