#include "runtime/data/foreign_format.h"

#include "runtime/error.h"

namespace transxssm {
namespace {

using std::string_view_literals::operator""sv;

struct Format {
  std::string_view magic, what, cure;
  bool text_like = false;  // text may begin so too: a control character has to follow
};

constexpr std::string_view kTable =
    "write its text column as JSON lines (one object a line) and pass --field";
constexpr std::string_view kUnpack = "unpack it and name the files inside";

// In order: where one magic begins with another, the longer one comes first.
constexpr Format kFormats[] = {
    {"\xFD\x37\x7A\x58\x5A\0"sv, "xz data", "decompress it with `xz -d`, or compress it with zstd instead"},
    {"BZh", "bzip2 data", "decompress it with `bzip2 -d`, or compress it with zstd instead"},
    {"\x04\x22\x4D\x18", "LZ4 data", "decompress it with `lz4 -d`, or compress it with zstd instead"},
    {"\x02\x21\x4C\x18", "LZ4 data", "decompress it with `lz4 -d`, or compress it with zstd instead"},
    {"\x5D\0\0"sv, "LZMA data", "decompress it with `xz -d`, or compress it with zstd instead"},
    {"LZIP", "lzip data", "decompress it with `lzip -d`, or compress it with zstd instead", true},
    {"\x1F\x9D", "compress (.Z) data", "decompress it with `gzip -d`"},
    {"\xFF\x06\0\0sNaPpY"sv, "snappy data", "decompress it, or compress it with zstd instead"},
    {"PK\x03\x04", "a zip archive", kUnpack},
    {"PK\x05\x06", "an empty zip archive", kUnpack},
    {"PK\x07\x08", "a zip archive", kUnpack},
    {"7z\xBC\xAF\x27\x1C", "a 7z archive", kUnpack},
    {"Rar!\x1A\x07", "a rar archive", kUnpack},
    {"PAR1", "a Parquet table", kTable, true},
    {"PARE", "an encrypted Parquet table", kTable, true},
    {"ARROW1", "an Arrow table", kTable, true},
    {"FEA1", "a Feather table", kTable, true},
    {"\xFF\xFF\xFF\xFF", "an Arrow stream", kTable},
    {"Obj\x01", "an Avro table", kTable},
    {"ORC", "an ORC table", kTable, true},
    {"\x89HDF\r\n\x1A\n", "an HDF5 file", kTable},
    {"SQLite format 3\0"sv, "an SQLite database", kTable},
    {"\x93NUMPY", "a NumPy array", "name text files; token files are made by `data tokenize` alone"},
    {"MMIDIDX\0"sv, "the index of a token file", "name the text it was made from"},
    {"%PDF-", "a PDF document", "take its text out with `pdftotext`"},
    {"\x7F"
     "ELF",
     "a program", "name text files"},
    {"version https://git-lfs", "a pointer of Git LFS instead of the file",
     "fetch the file with `git lfs pull`"},
    {"\xFF\xFE\0\0"sv, "text in UTF-32", "convert it with `iconv -f UTF-32 -t UTF-8`"},
    {"\0\0\xFE\xFF"sv, "text in UTF-32", "convert it with `iconv -f UTF-32 -t UTF-8`"},
    {"\xFF\xFE", "text in UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"},
    {"\xFE\xFF", "text in UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"},
};

bool is_control(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return (byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r' && byte != '\f') || byte == 0x7F;
}

bool is(const Format& format, std::string_view head) {
  if (!head.starts_with(format.magic)) return false;
  const std::string_view rest = head.substr(format.magic.size());
  if (format.magic == "BZh")  // the level, then the start of the first block or of the end
    return rest.size() >= 7 && rest[0] >= '1' && rest[0] <= '9' &&
           (rest.substr(1, 6) == "\x31\x41\x59\x26\x53\x59" ||
            rest.substr(1, 6) == "\x17\x72\x45\x38\x50\x90");
  return !format.text_like || (!rest.empty() && is_control(rest[0]));
}

}  // namespace

void refuse_foreign_format(std::string_view head, const std::string& path, bool decompressed) {
  const auto refuse = [&](std::string_view what, std::string_view cure) {
    throw DataError("{}{} is {}, not text in UTF-8; {}.", path, decompressed ? " (decompressed)" : "", what,
                    cure);
  };
  for (const Format& format : kFormats)
    if (is(format, head)) refuse(format.what, format.cure);
  if (head.size() > 262 && (head.substr(257, 6) == "ustar\0"sv || head.substr(257, 6) == "ustar "))
    refuse("a tar archive", kUnpack);
  if (decompressed && (head.starts_with("\x1F\x8B") || head.starts_with("\x28\xB5\x2F\xFD")))
    refuse("compressed once more", "decompress it once");
}

}  // namespace transxssm
