// tokenizer.json: what is accepted is written so that the same tokenizer is read back.
#include "runtime/data/tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace transxssm {

FUZZ_TARGET(tokenizer_json, 4096) {
  const Tokenizer first = Tokenizer::from_json(input, "tokenizer.json");
  const std::string written = first.to_json();
  const auto again = fuzz::attempt([&] { return Tokenizer::from_json(written, "again"); });
  fuzz::expect(again.has_value(), "a tokenizer that was accepted is refused when written again");
  fuzz::expect(again->to_json() == written, "a tokenizer written again says something else");
  fuzz::expect(again->vocab_size() == first.vocab_size(), "another number of tokens");
  for (const std::string_view text :
       {"Hello world, it's 1234  lines\n\n of text", "a b ab abc #version #version: 0.2",
        "e\xCC\x81\xE4\xB8\xAD <|endoftext|> x"}) {
    const auto ids = fuzz::attempt([&] { return first.encode(text, true); });
    const auto same = fuzz::attempt([&] { return again->encode(text, true); });
    fuzz::expect(ids == same, "a tokenizer written again gives other ids");
    if (ids) first.decode(*ids);
  }
}

}  // namespace transxssm
