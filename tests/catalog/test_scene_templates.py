"""Scene templates: the shipped file speaks the built-in model's words; foreign files are checked strictly."""

import re

import pytest
import yaml

from refadgen.catalog.scenes import Scene, load_scenes
from refadgen.studio import scenes as studio

PAPER_CATEGORIES = """
    Backpack, Bench, Body wash, Bottle, Car, Cell phone, Chargers, Clothing, Coffee, Cup, Eyeshadow, Fork, Foundation,
    Handbag, Hats, Headphones, Kite, Lipstick, Motorcycle, Notebooks, Pens, Pillows, Rugs, Shampoo, Snacks, Sneakers,
    Sports ball, Toothbrush, Umbrella, Wine glass
"""
CATEGORIES = [name.strip() for name in PAPER_CATEGORIES.split(",")]
SHIPPED = load_scenes()

SMALL = """
default:
  scenes:
    table: a {category} on a table
    beach: a {category} at the beach
cup:
  also: [mug]
  scenes:
    cafe: "{product}, a {category}, in a café"
    table: a {category} on a kitchen table
Wine Glasses:
  noun: glass of wine
  scenes:
    cellar: a {category} in a cellar
"""


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "scenes.yaml"
    file.write_text(SMALL, encoding="utf-8")
    return load_scenes(str(file))


def _trained_prompts(noun: str) -> dict[str, tuple[str, str]]:
    return {
        studio.scene_prompt(surface, wall, light, noun): (surface, wall)
        for surface in studio.SURFACES
        for wall in studio.WALLS
        for light in studio.LIGHTS
    }


@pytest.mark.parametrize("category", [*CATEGORIES, None])
def test_shipped_scenes_are_in_the_words_of_training(category):
    scenes = SHIPPED.prompts_for(category, "Some Title™", 4)
    noun = re.match(r"a (.*?) (on|under) ", scenes[0].prompt)[1]
    trained = _trained_prompts(noun)
    assert len({scene.prompt for scene in scenes}) == len({scene.name for scene in scenes}) == 4
    for scene in scenes:
        assert not studio.is_held_out_combination(*trained[scene.prompt])
    surfaces, walls = zip(*(trained[scene.prompt] for scene in scenes[:3]), strict=True)
    assert len(set(surfaces)) > 1
    assert len(set(walls)) > 1


def test_shipped_file_has_each_category_of_the_paper():
    with open(load_scenes.__globals__["_SHIPPED"], encoding="utf-8") as file:
        tree = yaml.safe_load(file)
    assert set(tree) == {*CATEGORIES, "default"}
    assert all(len(entry["scenes"]) >= 3 for entry in tree.values())
    assert all("{product}" not in text for entry in tree.values() for text in entry["scenes"].values())


def test_nouns_are_those_of_the_studio():
    shapes = pytest.importorskip("refadgen.studio.shapes")
    for category in shapes.CATEGORIES:
        prompt = SHIPPED.prompts_for(category, None, 1)[0].prompt
        assert any(prompt.startswith(f"a {noun} ") for of, noun, _ in shapes.BUILDERS if of == category), prompt


@pytest.mark.parametrize(
    ("category", "prompt"),
    [
        ("cup", "Blue, a cup, in a café"),
        ("CUPS", "Blue, a cup, in a café"),
        ("Home & Garden > Kitchen > Tea Cups", "Blue, a cup, in a café"),
        ("Home/Tea Cups", "Blue, a cup, in a café"),
        ("Default Category/Home/Plates", "a plate on a table"),
        ("Home &amp; Garden &gt; Plates", "a plate on a table"),
        ("Cups > Accessories", "Blue, an accessory, in a café"),
        ("Cup holders", "Blue, a cup holder, in a café"),
        ("Coffee Mugs", "Blue, a coffee mug, in a café"),
        ("wine glass", "a glass of wine in a cellar"),
        ("Wine   GLASSES", "a glass of wine in a cellar"),
        ("Drinking glass", "a drinking glass on a table"),
        ("Cupboards", "a cupboard on a table"),
        ("4711", "a product on a table"),
        ("  ", "a product on a table"),
        (">", "a product on a table"),
        (None, "a product on a table"),
        ("{product} {0}", "a {product} {0} on a table"),
    ],
)
def test_lookup(small, category, prompt):
    assert small.prompts_for(category, "Blue", 1)[0].prompt == prompt


@pytest.mark.parametrize(
    ("category", "title", "noun", "source"),
    [
        # Things that share a word with a category of the scenes.
        ("Furniture > Beds & Accessories > Mattress Foundations", None, "a mattress foundation", "category"),
        ("Cycling > Bicycle Parts > Bicycle Forks", None, "a bicycle fork", "category"),
        ("Bike > Forks", None, "a fork", "category"),
        ("Tableware > Serveware > Egg Cups", None, "an egg cup", "category"),
        ("Percussion > Hi-Hats", None, "a hi-hat", "category"),
        ("Home > Throw Pillows", None, "a pillow", "category"),
        ("Baby & Toddler Clothing", None, "a garment", "category"),
        # A list: its member that the title names, else a title of a known kind, else both.
        ("Clothing > Coats & Jackets", "Blue Denim Jacket", "a jacket", "title"),
        ("Clothing > Coats & Jackets", "Oversized Hoodie", "a hoodie", "title"),
        ("Clothing > Coats & Jackets", "Summer Breeze", "a coat or jacket", "list"),
        # What names nothing: the element above, then the title, then "product".
        ("Clothing > Hats > Sale", "Winter Beanie", "a hat", "category above"),
        ("Shoes > Acme", None, "a shoe", "category above"),
        ("Sale", "Winter Beanie", "a beanie", "title"),
        ("simple", "Espresso Machine", "a machine", "title"),
        ("999999", "Clay Pot", "a pot", "title"),
        (None, "Clay Pot", "a pot", "title"),
        (None, "Blue Egg Cup", "an egg cup", "title"),
        (None, "LED High Tops", "a high top", "title"),
        ("Gifts > Under $20", None, "a product", "nothing"),
    ],
)
def test_where_a_noun_is_found(category, title, noun, source):
    found = SHIPPED.noun_of(category, title, "Acme")
    assert (found.noun.with_article(), found.source) == (noun, source)


@pytest.mark.parametrize(
    ("category", "title", "noun", "source"),
    [
        ("Schuhe", "Schwarze Lederschuhe", "a product", "nothing"),
        ("Schuhe", "Nike Air Sneaker", "a sneaker", "title"),
        ("Sac à main", None, "a product", "nothing"),
        ("Küche > Teller", "Weißer Teller", "a product", "nothing"),
        ("家居 > 杯子", "Blue Mug", "a mug", "title"),
        ("Shoes > Herrenschuhe", "Herrenschuhe", "a shoe", "category above"),
        ("Party Supplies > Обувь", None, "party supplies", "category above"),
        ("Outdoor", "Clay Plant Pot", "a pot", "title"),
        ("Xbox", None, "an Xbox", "category"),
    ],
)
def test_words_of_other_languages_stay_out_of_english_templates(category, title, noun, source):
    found = SHIPPED.noun_of(category, title)
    assert (found.noun.with_article(), found.source) == (noun, source)


def test_templates_of_another_language_take_its_words(tmp_path):
    file = tmp_path / "scenes.yaml"
    file.write_text("default: {scenes: {a: '{category} auf einem Tisch aus Holz vor einer Wand'}}", encoding="utf-8")
    prompt = load_scenes(str(file)).prompts_for("Küche > Tasse", None, 1)[0].prompt
    assert prompt == "tasse auf einem Tisch aus Holz vor einer Wand"
    file.write_text("default: {scenes: {a: '{category} on a table in front of a wall'}}", encoding="utf-8")
    assert load_scenes(str(file)).prompts_for("Küche > Tasse", None, 1)[0].prompt.startswith("product on")


def test_a_title_chooses_the_scenes_too():
    assert SHIPPED.prompts_for(None, "Winter Beanie", 1)[0].name == SHIPPED.prompts_for("Hats", None, 1)[0].name
    assert SHIPPED.prompts_for(None, "Blue Egg Cup", 1)[0].name == SHIPPED.prompts_for(None, None, 1)[0].name
    assert SHIPPED.prompts_for("Egg Cups", None, 1)[0].name == SHIPPED.prompts_for(None, None, 1)[0].name


def test_articles_of_templates(tmp_path):
    file = tmp_path / "scenes.yaml"
    text = "A {category} and an {category}, the {category}, a {product}; {{a {category}}}"
    file.write_text(f"default: {{scenes: {{a: '{text}'}}}}", encoding="utf-8")
    scenes = load_scenes(str(file))
    assert scenes.prompts_for("Aprons", "Blue one", 1)[0].prompt == (
        "An apron and an apron, the apron, a Blue one; {an apron}"
    )
    assert scenes.prompts_for("Furniture", "Oak chair", 1)[0].prompt == (
        "Furniture and furniture, the furniture, an Oak chair; {furniture}"
    )


def test_product_is_title_else_category(small):
    assert small.prompts_for("cup", " My\n {0} Cup ", 1) == (Scene(name="cafe", prompt="My {0} Cup, a cup, in a café"),)
    assert small.prompts_for("cup", None, 1)[0].prompt == "cup, a cup, in a café"


def test_more_than_the_category_has_comes_from_default(small):
    names = [scene.name for scene in small.prompts_for("cup", None, 9)]
    assert names == ["cafe", "table", "beach"]
    assert small.prompts_for("cup", None, 2) == small.prompts_for("cup", None, 9)[:2]
    assert small.fewest == 2
    small.check_count(2)
    with pytest.raises(ValueError, match=r"catalog.scenes_per_product=3: .* 2 scenes"):
        small.check_count(3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "have the category 'default'"),
        ("cup: {scenes: {a: b}}", "have the category 'default'"),
        ("default: {}", "default.scenes: must map"),
        ("default: a cup", "default: must be a section"),
        ("default: {scenes: {a: b}, scene: 3}", "default.scene: unknown"),
        ("default: {scenes: {a: ''}}", "default.scenes.a: must be text"),
        ("default: {scenes: {a: [b]}}", "default.scenes.a: must be text"),
        ("default: {scenes: {A B: b}}", "default.scenes.A B: a scene's name"),
        ("default: {scenes: {a: 'x {brand}'}}", "default.scenes.a: unknown {brand}"),
        ("default: {scenes: {a: 'x {product.__class__}'}}", "unknown {product.__class__}"),
        ("default: {scenes: {a: 'x {product!r:>9}'}}", "unknown {product!r:>9}"),
        ("default: {scenes: {a: 'x {'}}", "default.scenes.a: "),
        ("default: {scenes: {a: b, a: c}}", "'a' stands twice"),
        ("default: {scenes: {a: b}}\ncup: {also: mug, scenes: {a: b}}", "cup.also: must be a list"),
        ("default: {scenes: {a: b}}\ncup: {noun: 3, scenes: {a: b}}", "cup.noun: must be text"),
        ("default: {scenes: {a: b}}\ncup: {scenes: {a: b}}\nCups: {scenes: {a: b}}", "'cup' belongs to cup already"),
        ("default: {scenes: {a: b}}\n3: {scenes: {a: b}}", "3: a category's name must be text"),
        ("a: [", "not YAML"),
        ("\x00", "not YAML"),
    ],
)
def test_bad_files_name_the_key(tmp_path, text, complaint):
    file = tmp_path / "scenes.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(complaint)) as error:
        load_scenes(str(file))
    assert "catalog.scenes_file=" in str(error.value)


def test_missing_file():
    with pytest.raises(ValueError, match=r"catalog.scenes_file='/no/such.yaml': cannot be read"):
        load_scenes("/no/such.yaml")
