#include "checkpoint/manifest.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "checkpoint/layout.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/manifest_check.h"
#include "checkpoint/plan.h"
#include "checkpoint/wire.h"

namespace transxssm {
namespace {

constexpr uint32_t kFormatMajor = 1;
constexpr uint32_t kFormatMinor = 0;
constexpr uint32_t kMinReaderMinor = 0;  // an older reader of the same major must be at least this
constexpr size_t kMaxTensors = 1'000'000;
constexpr int64_t kMinChunkBytes = 4096;
constexpr int64_t kMaxChunkBytes = int64_t{64} << 20;

txc1::ElementType to_proto(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return txc1::F32;
    case DType::f64:
      return txc1::F64;
    case DType::bf16:
      return txc1::BF16;
    case DType::i32:
      return txc1::I32;
    case DType::i64:
      return txc1::I64;
    case DType::u8:
      return txc1::U8;
  }
  throw InternalError("unknown dtype {}", static_cast<int>(dtype));
}

bool from_proto(int value, DType& dtype) {
  for (DType known : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::u8}) {
    if (to_proto(known) == value) {
      dtype = known;
      return true;
    }
  }
  return false;
}

txc1::Kind to_proto(TensorKind kind) {
  return static_cast<txc1::Kind>(kind);
}
static_assert(static_cast<int>(TensorKind::buffer) == txc1::BUFFER);

// False where the sizes are too many or too large for a Shape.
template <class Sizes>
bool to_shape(const Sizes& sizes, Shape& shape) {
  if (sizes.size() > kMaxRank) return false;
  for (uint64_t size : sizes) {
    if (size > static_cast<uint64_t>(INT64_MAX)) return false;
    shape.append(static_cast<int64_t>(size));
  }
  return checked_volume(shape).has_value();
}

template <class Message>
bool parse(std::string_view bytes, Message& message) {
  return message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

template <class Message>
std::string serialize(const Message& message) {
  std::string bytes;
  TRANSXSSM_CHECK(message.SerializeToString(&bytes), "a protobuf message could not be encoded");
  return bytes;
}

void write_decl(const TensorInfo& info, txc1::TensorDecl* decl) {
  decl->set_name(info.name);
  for (int d = 0; d < info.global_shape.rank(); ++d) {
    decl->add_global_shape(static_cast<uint64_t>(info.global_shape[d]));
  }
  decl->set_dtype(to_proto(info.dtype));
  decl->set_kind(to_proto(info.kind));
  decl->set_tied_to(info.tied_to);
}

// Empty, or what is wrong.
std::string read_decl(const txc1::TensorDecl& decl, TensorInfo& info) {
  info.name = decl.name();
  const std::string problem = name_problem(info.name);
  if (!problem.empty()) return problem;
  if (!to_shape(decl.global_shape(), info.global_shape)) {
    return fmt::format("tensor {}: global_shape has more than {} dims or is too large", info.name, kMaxRank);
  }
  if (!from_proto(decl.dtype(), info.dtype))
    return fmt::format("tensor {}: unknown dtype {}", info.name, decl.dtype());
  if (!txc1::Kind_IsValid(decl.kind()))
    return fmt::format("tensor {}: unknown kind {}", info.name, decl.kind());
  info.kind = static_cast<TensorKind>(decl.kind());
  info.tied_to = decl.tied_to();
  return "";
}

void write_file(const FileRef& file, txc1::FileRef* out) {
  out->set_path(file.path);
  out->set_bytes(static_cast<uint64_t>(file.bytes));
  out->set_crc32c(file.crc);
}

// These end on terminals: no control characters from a file.
bool is_printable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c < '\x7f'; });
}

FileRef read_file_ref(const txc1::FileRef& in) {
  return {in.path(), static_cast<int64_t>(in.bytes()), in.crc32c()};
}

void write_state(const TrainState& state, txc1::RunState* out) {
  out->set_step(state.step);
  out->set_consumed_samples(state.consumed_samples);
  out->set_consumed_tokens(state.consumed_tokens);
  out->set_seed(state.seed);
  out->set_learning_rate(state.learning_rate);
  out->set_loss(state.loss);
  out->set_data_digest(state.data_digest);
  out->set_tokenizer_digest(state.tokenizer_digest);
  out->mutable_mesh()->set_dp(static_cast<uint32_t>(state.mesh.dp));
  out->mutable_mesh()->set_tp(static_cast<uint32_t>(state.mesh.tp));
  out->mutable_mesh()->set_pp(static_cast<uint32_t>(state.mesh.pp));
  out->mutable_mesh()->set_cp(static_cast<uint32_t>(state.mesh.cp));
  out->set_run_uuid(state.run_uuid);
  out->set_wall_time_ns(state.wall_time_ns);
  out->set_updates(state.updates);
  if (state.schedule.kind.empty()) return;
  txc1::Schedule* schedule = out->mutable_schedule();
  schedule->set_kind(state.schedule.kind);
  schedule->set_peak(state.schedule.peak);
  schedule->set_min_fraction(state.schedule.min_fraction);
  schedule->set_warmup_tokens(state.schedule.warmup_tokens);
  schedule->set_end_tokens(state.schedule.end_tokens);
  schedule->set_unit(state.schedule.unit);
}

SavedSchedule read_schedule(const txc1::Schedule& in, const std::string& file) {
  const SavedSchedule schedule{in.kind(),          in.peak(),       in.min_fraction(),
                               in.warmup_tokens(), in.end_tokens(), in.unit()};
  const auto is_count = [](int64_t count) { return count >= 0 && count <= kMaxTokens; };
  if (schedule.kind.empty() || schedule.kind.size() > 64 || !is_printable(schedule.kind) ||
      !std::isfinite(schedule.peak) || !std::isfinite(schedule.min_fraction) || schedule.unit == 0 ||
      !is_count(schedule.unit) || !is_count(schedule.warmup_tokens) || !is_count(schedule.end_tokens))
    throw CheckpointError("{}: schedule is out of range", file);
  return schedule;
}

TrainState read_state(const txc1::RunState& in, const std::string& file) {
  TrainState state;
  state.step = in.step();
  state.consumed_samples = in.consumed_samples();
  state.consumed_tokens = in.consumed_tokens();
  state.seed = in.seed();
  state.learning_rate = in.learning_rate();
  state.loss = in.loss();
  state.data_digest = in.data_digest();
  state.tokenizer_digest = in.tokenizer_digest();
  for (uint32_t size : {in.mesh().dp(), in.mesh().tp(), in.mesh().pp(), in.mesh().cp()}) {
    if (size < 1 || size > 1u << 24) throw CheckpointError("{}: mesh has an axis of size {}", file, size);
  }
  state.mesh = {static_cast<int>(in.mesh().dp()), static_cast<int>(in.mesh().tp()),
                static_cast<int>(in.mesh().pp()), static_cast<int>(in.mesh().cp())};
  state.run_uuid = in.run_uuid();
  state.wall_time_ns = in.wall_time_ns();
  for (const auto& [field, text] :
       {std::pair("data_digest", &state.data_digest), std::pair("tokenizer_digest", &state.tokenizer_digest),
        std::pair("run_uuid", &state.run_uuid)}) {
    if (text->size() > 512 || !is_printable(*text))
      throw CheckpointError("{}: {} is not short text", file, field);
  }
  if (state.step < 0 || state.step > kMaxStep)
    throw CheckpointError("{}: step {} is out of range", file, state.step);
  for (const int64_t count : {state.consumed_samples, state.consumed_tokens})
    if (count < 0 || count > kMaxTokens)
      throw CheckpointError("{}: consumed_samples or consumed_tokens is negative or too large: {}", file,
                            count);
  state.updates = in.updates() == 0 ? state.step : in.updates();
  if (state.updates < 0 || state.updates > state.step)
    throw CheckpointError("{}: {} updates in {} steps", file, state.updates, state.step);
  if (in.has_schedule()) state.schedule = read_schedule(in.schedule(), file);
  return state;
}

// Empty, or what is wrong with a box whose bytes must start at `begin`.
std::string read_box(const txc1::Box& in, const Manifest& manifest, int64_t begin, int64_t data_bytes,
                     int64_t chunk_bytes, StoredBox& box) {
  if (in.tensor_id() >= manifest.tensors.size())
    return fmt::format("tensor_id {} is out of range", in.tensor_id());
  box.tensor = static_cast<int>(in.tensor_id());
  const TensorInfo& tensor = manifest.tensors[in.tensor_id()];
  if (!tensor.tied_to.empty()) return fmt::format("tensor {} is tied and has a box of its own", tensor.name);
  if (!to_shape(in.offset(), box.box.offset) || !to_shape(in.extent(), box.box.extent)) {
    return fmt::format("tensor {}: offset or extent is too large", tensor.name);
  }
  if (box.box.offset.rank() != tensor.global_shape.rank() ||
      box.box.extent.rank() != tensor.global_shape.rank()) {
    return fmt::format("tensor {}: offset or extent has other dims than the tensor", tensor.name);
  }
  box.key = in.key();
  if (box.key.size() > 1024) return fmt::format("tensor {}: a key of {} bytes", tensor.name, box.key.size());
  const int64_t bytes = checked_volume(box.box.extent).value() * dtype_bytes(tensor.dtype);
  if (in.byte_begin() != static_cast<uint64_t>(begin) || bytes > data_bytes - begin ||
      in.byte_end() != static_cast<uint64_t>(begin + bytes)) {
    return fmt::format("tensor {}: bytes {} to {} do not match {} elements at byte {} of a file of {} bytes",
                       tensor.name, in.byte_begin(), in.byte_end(), bytes / dtype_bytes(tensor.dtype), begin,
                       data_bytes);
  }
  box.begin = begin;
  box.end = begin + bytes;
  const int64_t chunks = (bytes + chunk_bytes - 1) / chunk_bytes;
  if (in.chunk_crc32c_size() != chunks) {
    return fmt::format("tensor {}: {} checksums for {} chunks", tensor.name, in.chunk_crc32c_size(), chunks);
  }
  box.chunk_crcs.assign(in.chunk_crc32c().begin(), in.chunk_crc32c().end());
  return "";
}

}  // namespace

std::string name_problem(const std::string& name) {
  if (name.empty() || name.size() > 512)
    return fmt::format("a tensor's name has {} bytes, not 1 to 512", name.size());
  const bool printable = std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c < '\x7f'; });
  return printable ? "" : "a tensor's name has a character that is not printable ASCII";
}

std::string encode_manifest(const Manifest& manifest) {
  txc1::Manifest out;
  out.set_format_major(kFormatMajor);
  out.set_format_minor(kFormatMinor);
  out.set_min_reader_minor(kMinReaderMinor);
  out.set_save_uuid(manifest.save_uuid);
  write_state(manifest.state, out.mutable_state());
  out.set_model_config(manifest.model_config);
  for (const TensorInfo& tensor : manifest.tensors) write_decl(tensor, out.add_tensors());
  for (const FileRef& file : manifest.files) write_file(file, out.add_files());
  return serialize(out);
}

Manifest decode_manifest(const std::string& bytes, const std::string& file) {
  txc1::Manifest in;
  txc1::TensorDecl decl;
  txc1::FileRef ref;
  Manifest manifest;
  std::string problem;  // the first of a tensor; a newer format is reported before it
  const auto read = [&](int field, std::string_view part) {
    if (!problem.empty()) return true;
    if (field == txc1::Manifest::kTensorsFieldNumber) {
      if (!parse(part, decl)) return false;
      if (manifest.tensors.size() == kMaxTensors)
        problem = fmt::format("more than {} tensors", kMaxTensors);
      else
        problem = read_decl(decl, manifest.tensors.emplace_back());
    } else {
      if (!parse(part, ref)) return false;
      manifest.files.push_back(read_file_ref(ref));
      if (!may_be_listed(manifest.files.back(), manifest.files.size()))
        problem = fmt::format("files[{}] is no file of a checkpoint", manifest.files.size() - 1);
    }
    return true;
  };
  const auto others =
      split_message(bytes, {txc1::Manifest::kTensorsFieldNumber, txc1::Manifest::kFilesFieldNumber}, read);
  if (!others || !parse(*others, in)) throw CheckpointError("{}: not a manifest", file);
  if (in.format_major() != kFormatMajor || in.min_reader_minor() > kFormatMinor) {
    throw CheckpointError("{}: format TXC {}.{} needs a reader of version {}.{}; this program reads {}.{}",
                          file, in.format_major(), in.format_minor(), in.format_major(),
                          in.min_reader_minor(), kFormatMajor, kFormatMinor);
  }
  if (!problem.empty()) throw CheckpointError("{}: {}", file, problem);
  manifest.save_uuid = in.save_uuid();
  manifest.state = read_state(in.state(), file);
  manifest.model_config = in.model_config();
  check_manifest(manifest, file);
  return manifest;
}

std::string encode_table(const BoxTable& table) {
  txc1::BoxTable out;
  out.set_header_bytes(static_cast<uint64_t>(table.header_bytes));
  out.set_header_crc32c(table.header_crc);
  out.set_chunk_bytes(static_cast<uint64_t>(table.chunk_bytes));
  for (const StoredBox& box : table.boxes) {
    txc1::Box* to = out.add_boxes();
    to->set_tensor_id(static_cast<uint32_t>(box.tensor));
    for (int d = 0; d < box.box.offset.rank(); ++d) {
      to->add_offset(static_cast<uint64_t>(box.box.offset[d]));
      to->add_extent(static_cast<uint64_t>(box.box.extent[d]));
    }
    to->set_key(box.key);
    to->set_byte_begin(static_cast<uint64_t>(box.begin));
    to->set_byte_end(static_cast<uint64_t>(box.end));
    for (uint32_t crc : box.chunk_crcs) to->add_chunk_crc32c(crc);
  }
  return serialize(out);
}

BoxTable decode_table(const std::string& bytes, const std::string& file, const Manifest& manifest,
                      int64_t data_bytes) {
  // The boxes need the fields before them, which may come after them in the bytes.
  txc1::BoxTable in;
  std::vector<std::string_view> parts;
  const auto note = [&](int, std::string_view part) {
    parts.push_back(part);
    return true;
  };
  const auto others = split_message(bytes, {txc1::BoxTable::kBoxesFieldNumber}, note);
  if (!others || !parse(*others, in)) throw CheckpointError("{}: not a box table", file);
  if (in.header_bytes() < 10 || in.header_bytes() > static_cast<uint64_t>(data_bytes)) {
    throw CheckpointError("{}: header_bytes is {}, the data file has {} bytes", file, in.header_bytes(),
                          data_bytes);
  }
  if (in.chunk_bytes() < kMinChunkBytes || in.chunk_bytes() > kMaxChunkBytes ||
      in.chunk_bytes() % kMinChunkBytes != 0) {
    throw CheckpointError("{}: chunk_bytes is {}", file, in.chunk_bytes());
  }
  BoxTable table;
  table.header_bytes = static_cast<int64_t>(in.header_bytes());
  table.header_crc = in.header_crc32c();
  table.chunk_bytes = static_cast<int64_t>(in.chunk_bytes());
  int64_t end = table.header_bytes;
  txc1::Box box;
  for (const std::string_view& part : parts) {
    const std::string problem = parse(part, box) ? read_box(box, manifest, end, data_bytes, table.chunk_bytes,
                                                            table.boxes.emplace_back())
                                                 : "is no box";
    if (!problem.empty()) throw CheckpointError("{}: boxes[{}]: {}", file, &part - parts.data(), problem);
    end = table.boxes.back().end;
  }
  if (end != data_bytes) throw CheckpointError("{}: boxes end at byte {} of {}", file, end, data_bytes);
  return table;
}

std::string encode_declaration(const Declaration& declaration) {
  txc1::Declaration out;
  for (const Declaration::Entry& entry : declaration.tensors) {
    txc1::Declaration::Tensor* to = out.add_tensors();
    write_decl(entry.info, to->mutable_decl());
    to->set_owned_elements(static_cast<uint64_t>(entry.owned_elements));
  }
  out.set_bytes(static_cast<uint64_t>(declaration.bytes));
  out.set_problem(declaration.problem);
  return serialize(out);
}

Declaration decode_declaration(const std::string& bytes) {
  txc1::Declaration in;
  TRANSXSSM_CHECK(in.ParseFromString(bytes), "a declaration could not be decoded");
  Declaration declaration;
  for (const txc1::Declaration::Tensor& tensor : in.tensors()) {
    Declaration::Entry& entry = declaration.tensors.emplace_back();
    const std::string problem = read_decl(tensor.decl(), entry.info);
    TRANSXSSM_CHECK(problem.empty(), "{}", problem);
    entry.owned_elements = static_cast<int64_t>(tensor.owned_elements());
  }
  declaration.bytes = static_cast<int64_t>(in.bytes());
  declaration.problem = in.problem();
  return declaration;
}

std::string encode_written(const Written& written) {
  txc1::Written out;
  write_file(written.data, out.mutable_data());
  write_file(written.table, out.mutable_table());
  out.set_problem(written.problem);
  return serialize(out);
}

Written decode_written(const std::string& bytes) {
  txc1::Written in;
  TRANSXSSM_CHECK(in.ParseFromString(bytes), "a report of written files could not be decoded");
  return {read_file_ref(in.data()), read_file_ref(in.table()), in.problem()};
}

}  // namespace transxssm
