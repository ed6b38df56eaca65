#include "checkpoint/wire.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <cstdint>

namespace transxssm {

std::optional<std::string> split_message(const std::string& bytes, std::initializer_list<int> apart,
                                         const std::function<bool(int field, std::string_view)>& read) {
  using google::protobuf::internal::WireFormatLite;
  if (bytes.size() > static_cast<size_t>(INT32_MAX)) return std::nullopt;
  const int size = static_cast<int>(bytes.size());
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()), size);
  std::string others;
  while (in.CurrentPosition() < size) {
    const auto begin = static_cast<size_t>(in.CurrentPosition());
    const uint32_t tag = in.ReadTag();
    if (tag == 0) return std::nullopt;
    const int field = WireFormatLite::GetTagFieldNumber(tag);
    if (std::find(apart.begin(), apart.end(), field) == apart.end()) {
      if (!WireFormatLite::SkipField(&in, tag)) return std::nullopt;
      others.append(bytes, begin, static_cast<size_t>(in.CurrentPosition()) - begin);
      continue;
    }
    uint32_t length = 0;
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED ||
        !in.ReadVarint32(&length) || length > static_cast<uint32_t>(size - in.CurrentPosition()))
      return std::nullopt;
    const std::string_view part(bytes.data() + in.CurrentPosition(), length);
    if (!in.Skip(static_cast<int>(length)) || !read(field, part)) return std::nullopt;
  }
  return others;
}

}  // namespace transxssm
