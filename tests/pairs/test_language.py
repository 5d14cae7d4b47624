"""Which responses leave the script or the language of their question."""
# ruff: noqa: RUF001 - letters that look like others are the point

import pytest

from synthalign.pairs import ForeignScript, WrongLanguage
from synthalign.types import Drop, Reply

QUESTION = "What is in the image?"
ABOUT_THE_CAT = {
    "en": ("Where is the cat?", "The cat is sleeping on the sofa, next to the window of the house."),
    "de": ("Wo ist die Katze?", "Die Katze schläft auf dem Sofa, neben dem Fenster des Hauses."),
    "fr": ("Où est le chat ?", "Le chat dort sur le canapé, à côté de la fenêtre de la maison."),
    "es": ("¿Dónde está el gato?", "El gato está durmiendo en el sofá, al lado de la ventana de la casa."),
    "it": ("Dov'è il gatto?", "Il gatto dorme sul divano, accanto alla finestra della casa."),
    "pt": ("Onde está o gato?", "O gato está dormindo no sofá, ao lado da janela da casa."),
    "nl": ("Waar is de kat?", "De kat slaapt op de bank, naast het raam van het huis."),
    "id": ("Di mana kucing itu?", "Kucing itu sedang tidur di sofa, di sebelah jendela rumah."),
    "pl": ("Gdzie jest kot?", "Kot śpi na kanapie, obok okna tego domu."),
    "tr": ("Resimdeki kedi nerede?", "Kedi kanepede, evin penceresinin yanında uyuyor."),
    "sv": ("Var ligger katten på bilden?", "Katten ligger och sover i den gamla soffan, bredvid fönstret i huset."),
    "fi": ("Missä kissa on?", "Kissa nukkuu sohvalla, talon ikkunan vieressä."),
    "cs": ("Kde je kočka?", "Kočka spí na pohovce, vedle okna toho domu."),
    "hu": ("Hol van a macska?", "A macska a kanapén alszik, a ház ablaka mellett."),
    "ro": ("Unde este pisica?", "Pisica doarme pe canapea, lângă fereastra casei."),
    "vi": ("Con mèo ở đâu?", "Con mèo đang ngủ trên ghế sofa, cạnh cửa sổ của ngôi nhà."),
}
"""ISO 639 code: (question, answer)."""

LONG = "The image shows a kitchen with a large table and a window through which one sees a garden with old trees. "


@pytest.mark.parametrize(
    ("question", "response", "foreign"),
    [
        (QUESTION, "A cat.", None),
        (QUESTION, "Кот.", "cyrillic letters in 'Кот.'"),
        (QUESTION, "一只猫", "cjk letters in '一只猫'"),
        (QUESTION, 'A sign that says "出口" over a door.', None),  # 2 of 27 letters
        (QUESTION, "出口 sign", "cjk letters in '出口 sign'"),  # 2 of 6
        (QUESTION, "a b c d 猫", None),  # 1 of 5: exactly the share allowed
        (QUESTION, "a b c 猫", "cjk letters in 'a b c 猫'"),  # 1 of 4
        (QUESTION, "ｃａｔ", None),  # Latin in full width
        (QUESTION, "12 + 30 = 42 👍", None),
        ("图里有什么？", "一只猫", None),
        ("图里有什么？", "A cat.", "latin letters in 'A cat.'"),
        ("なに？", "黒猫二匹、カップ三個です", None),  # Japanese is written in all three
        ("图里有什么？", "ねこがいます", "kana letters in 'ねこがいます'"),
        ("무엇입니까?", "고양이", None),
        (QUESTION, 'It says "出口".', None),  # quoted
        (QUESTION, '"出口"', "cjk letters in '\"出口\"'"),  # nothing but a quotation
        ("这是什么手机？", "这是一部 iPhone 15 Pro Max。", None),  # brands are Latin everywhere
        ("Что это?", "Это MacBook Pro.", None),
        ("这是什么？", "这是 a white cat on the sofa with", "latin letters in '这是 a white cat on the sofa with'"),
        ("なに？", "桌子上有三个红色的杯子", "cjk letters in '桌子上有三个红色的杯子'"),  # no kana in a whole sentence
        ("なに？", "東京駅", None),
        ("1 + 1?", "два", None),  # no letters, no script to keep to
    ],
)
def test_a_response_in_a_script_that_the_question_does_not_use_is_foreign(question, response, foreign):
    drop = ForeignScript()(question, Reply(response))
    assert drop == (Drop("foreign_script", foreign) if foreign else None)


def test_the_share_of_foreign_letters_is_a_setting():
    assert ForeignScript(max_share=1.0)(QUESTION, Reply("Кот.")) is None
    assert ForeignScript(max_share=0.0)(QUESTION, Reply("A cat: 猫")) is not None


def test_a_long_run_of_foreign_letters_counts_however_long_the_rest():
    eleven = "在桌子上旁边有一只猫和"  # two each: 22
    assert ForeignScript()(QUESTION, Reply(3 * LONG + eleven)) is not None
    assert ForeignScript()(QUESTION, Reply(3 * LONG + eleven[:10])) is None
    assert ForeignScript(max_run=22)(QUESTION, Reply(3 * LONG + eleven)) is None
    assert ForeignScript()(QUESTION, Reply(3 * LONG + "Санкт-Петербург")) is None


@pytest.mark.parametrize("language", ABOUT_THE_CAT)
def test_an_answer_in_the_questions_language_passes(language):
    question, response = ABOUT_THE_CAT[language]
    assert WrongLanguage()(question, Reply(response)) is None


@pytest.mark.parametrize("language", sorted(set(ABOUT_THE_CAT) - {"en"}))
def test_an_english_answer_to_a_foreign_question_and_the_reverse_are_refused(language):
    question, response = ABOUT_THE_CAT[language]
    asked, said = ABOUT_THE_CAT["en"]
    drop = WrongLanguage()(question, Reply(said))
    assert drop is not None and drop.detail.startswith("en in answer to ")
    drop = WrongLanguage()(asked, Reply(response))
    assert drop is not None and drop.reason == "wrong_language"
    assert drop.detail.startswith(f"{language} in answer to en (evidence ")


@pytest.mark.parametrize(
    "response",
    [
        "Un autobus rosso.",  # too short to tell
        "Pizza",
        'The sign says "Bitte nicht auf den Rasen treten, Hunde sind an der Leine zu führen".',
        "Spaghetti alla carbonara, bruschetta and tiramisu.",
        "The Eiffel Tower, the Louvre and the Arc de Triomphe",
        "Fiat, Renault, Peugeot, Citroën, Škoda, Volkswagen and Seat cars are parked there",
        "Sushi, sashimi, edamame, tempura, miso soup and onigiri",
        "Angela Merkel, Emmanuel Macron and Giuseppe Conte",
        "karate, judo, taekwondo, jiu-jitsu",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
        "A, B, C, D, E, F, G, H, I, J, K",
        "lat 51.5, lon -0.12, alt 35 m",
        "x = 3; y = x**2 + 4",
        "STOP. NO PARKING ANY TIME",
        "",
        "… !",
        "\ud800 is half a sign of the kind",
    ],
)
def test_what_is_short_quoted_or_mixed_is_left_undecided(response):
    assert WrongLanguage()(QUESTION, Reply(response)) is None


@pytest.mark.parametrize(
    "question",
    [
        *("Where?", "Color?", "Car brand?", "Animal?", "Describe.", "Mood?", "Are pandas cute?", "Pasta or pizza?"),
        *("Is Mona Lisa smiling?", "Toyota or Honda?", "Who painted Guernica?", "Is the Tour Eiffel visible?"),
        *("Is there a croissant?", "Which Volkswagen model is it?", "OCR:", "Where is Waldo?"),
    ],
)
def test_a_short_english_question_may_be_answered_in_english(question):
    assert WrongLanguage()(question, Reply(ABOUT_THE_CAT["en"][1])) is None


def test_a_question_without_letters_has_no_language():
    assert WrongLanguage()("1 + 1 = ?", Reply(ABOUT_THE_CAT["de"][1])) is None
    assert WrongLanguage()("", Reply(ABOUT_THE_CAT["de"][1])) is None


def test_the_thresholds_of_language_are_settings():
    german = Reply(ABOUT_THE_CAT["de"][1])
    assert WrongLanguage(max_evidence=1000.0)(QUESTION, german) is None
    assert WrongLanguage(min_words=len(german.text.split()) + 1)(QUESTION, german) is None
    assert WrongLanguage(min_words=len(german.text.split()))(QUESTION, german) is not None
    assert WrongLanguage(doubt=100.0)(QUESTION, german) is None
    assert WrongLanguage(max_evidence=1.0, min_words=1)(QUESTION, Reply("Ein Hund")) is not None


@pytest.mark.parametrize("wrong", [{"max_share": 20.0}, {"max_share": float("nan")}, {"max_run": -1}])
def test_a_share_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=r"ForeignScript needs max_share in \[0, 1\] and max_run >= 0, got"):
        ForeignScript(**wrong)


@pytest.mark.parametrize("wrong", [{"max_evidence": -1.0}, {"doubt": float("nan")}])
def test_evidence_of_less_than_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="WrongLanguage needs max_evidence and doubt >= 0, got"):
        WrongLanguage(**wrong)
