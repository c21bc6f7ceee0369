# ruff: noqa: E501, SIM905
"""Texts of all the kinds that people give to a speech model, for prompts and chunks."""

from __future__ import annotations

import itertools
import random

PLAIN = [
    "Hello there.", "hello", "Hello, world!", "What? Really?! No way!!", "Wait... what", "Wait…", "one. two. three.",
    'She said "hello" to me.', "“Curly” quotes and ‘single’ ones", "«Bonjour», dit-il.", "„Guten Tag“, sagte er.",
    "It's John's; they're not. Can't won't shouldn't.", "can 't do ' s it", "rock 'n' roll", "the dogs ' .", "I ` m",
    "3", "3.14", "3.14 is pi, 42 is not.", "1,000,000 people", "In 1984 there were 007 agents", "Call 555-0123 now",
    "v2.0.1", "50%", "$5.99", "10:30", "1/2 cup", "2nd place", "x=5+3", "1e10", "-40 degrees",
    "123456789012345678901234567890", "a-b", "well-known", "a — b", "a–b", "---", "--", "a--b", "under_score",
    "path/to\\file", "user@example.com", "https://example.com/?q=1&r=2", "#hashtag @mention", "C++ and C#",
    "U.S.A.", "e.g. this, i.e. that", "Dr. Smith vs. Mr. Jones", "A.I.", "etc...", "....", "...", "?!", "!!!", ". . .",
    "😀", "Hi 😀 there 🎉!", "👩‍👩‍👧‍👦 family", "❤️", "naïve café résumé", "Ångström", "Ærøskøbing", "straße", "ÉCOLE",
    "¿Qué tal? ¡Muy bien!", "Привет, мир!", "Как дела? Хорошо.", "Γειά σου Κόσμε", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "こんにちは、世界。", "今日は良い天気ですね。", "カタカナ", "私は12歳です。", "東京2020", "「はい」と言った。", "え？本当！", "日本語 and English",
    "你好，世界！", "我今年25岁。", "今天天气很好。你呢？", "中文,标点.混合", "一二三", "北京2008年奥运会",
    "안녕하세요, 세계!", "저는 25살입니다.", "오늘 날씨가 좋네요.", "한국어 and 中文 混ぜる",
    "مرحبا بالعالم", "كيف حالك؟ بخير، شكرا.", "عمري ٢٥ سنة", "اليوم ١٢٣٫٤",
    "ｆｕｌｌｗｉｄｔｈ　ＴＥＸＴ１２３", "ﬁne ligature", "x² + y₂", "½ cup", "Ⅷ", "①②③", "™ © ®", "ſharp", "İstanbul",
    "tab\there", "new\nline", "car\rriage", "  spaces   everywhere  ", "zero\u200bwidth", "soft\u00adhyphen", "\ufeffBOM",
    "nbsp\u00a0here", "line\u2028separator", "\u3000ideographic", "bell\x07", "a , b . c ! d ?", "a,b,c", "a;b:c",
    "(parentheses) [brackets] {braces}", "<angle> <|im_end|>", "*bold* _it_ ~no~", "`code`", "back`tick", "\"", "'", "''", '""',
    "word\"", "\"word", "'word'", "x", "X", "0", "00", ",", ".", "?", "-", "&", "rock & roll", "a & b", "|", "<|", "|>",
    "æ", "ß", "ÿ", "mojibake Ã©tÃ©", "donâ€™t", "HELLO WORLD", "iPhone15 ProMax", "McDonald's", "O'Brien", "l'été d'Anne",
    "He said: 'no'.", "one,two", "one ,two", "end.Start", "end!Start", "end?start", "3.Start", "a.b.c", "Hmm… ok…",
    "،", "؛", "。", "！", "？", "，", "·", "•", "“", "”", "''quoted''", "2'6\"", "'90s", "the '80s", "y'all'd've",
]  # fmt: skip
WORDS = (
    "the quick brown fox it's 3 4.5 1999 don't e.g. «un» naïve 東京 です 你好 안녕 привет سلام 😀 \"quoted\" 'x' — … - well-known "
    "U.S. 50% and, but; stop. Really? Yes! ¿no? ¡sí! a/b under_score (aside) A I 。 ， ？"
).split()


def texts(count: int = 340) -> list[str]:
    """At least ``count`` texts: the ones above, random mixtures, and very long ones."""
    rng = random.Random(6)
    mixed = (" ".join(rng.choices(WORDS, k=rng.randint(2, 25))) for _ in itertools.count())
    joined = ("".join(rng.choices(WORDS, k=rng.randint(2, 8))) for _ in itertools.count())
    result = [*PLAIN]
    while len(result) < count - 3:
        result += [next(mixed), next(joined)]
    return [*result, " ".join(next(mixed) for _ in range(60)), "long " * 500, "a" * 1000]
