// Every byte of a checkpoint changed, every file cut, grown or gone, and manifests made to mislead: all
// refused, by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "checkpoint/index.h"
#include "checkpoint/layout.h"
#include "checkpoint/safetensors.h"
#include "runtime/crc32c.h"
#include "tests/checkpoint/toy_run.h"
#include "tests/support/fault_file_system.h"

namespace transxssm {
namespace {

using testing::HasSubstr;

const std::string kDir = "/run/checkpoints";
const std::string kPath = kDir + "/step-000000003";
const std::vector<std::string> kFiles{"COMMIT",
                                      "manifest.pb",
                                      "run/build.txt",
                                      "run/config.textproto",
                                      "run/tokenizer.json",
                                      "shards/rank-00000.pb",
                                      "shards/rank-00000.safetensors",
                                      "shards/rank-00001.pb",
                                      "shards/rank-00001.safetensors"};

class DamageTest : public testing::Test {
 protected:
  DamageTest() {
    run_as_ranks(2, [&](Communicator& comm) {
      FaultFileSystem files(disk_);
      save_toy(comm, files, kDir, 3);
    });
  }
  std::string& file(const std::string& name) { return *disk_.contents(kPath + "/" + name); }
  std::string load_error() {
    ToyRank rank(0, 1, 0);
    try {
      load_checkpoint(*one_, files_, kPath, rank.tensors);
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "";
  }
  // For each byte of a data file "tensor NAME (KIND)", or "header"; nothing for other files.
  std::vector<std::string> parts_of(const std::string& name) {
    const std::string& text = file(name);
    if (!name.ends_with(".safetensors")) return std::vector<std::string>(text.size());
    const auto size = static_cast<int64_t>(text.size());
    const auto header = static_cast<size_t>(safetensors_header_bytes(text.substr(0, 8), size, name));
    std::vector<std::string> parts(text.size(), "header");
    for (const SafetensorsEntry& entry : parse_safetensors_header(text.substr(0, header), size, name)) {
      const size_t slash = entry.key.find('/');
      const std::string label =
          fmt::format("tensor {} ({})", entry.key.substr(slash + 1, entry.key.rfind('/') - slash - 1),
                      entry.key.substr(0, slash));
      std::fill(parts.begin() + static_cast<int64_t>(header) + entry.begin,
                parts.begin() + static_cast<int64_t>(header) + entry.end, label);
    }
    return parts;
  }

  Disk disk_;
  FaultFileSystem files_{disk_};
  std::unique_ptr<Communicator> one_ = single_rank();
};

TEST_F(DamageTest, EveryByteChanged) {
  ASSERT_EQ(load_error(), "");
  for (const std::string& name : kFiles) {
    const std::string good = file(name);
    ASSERT_FALSE(good.empty()) << name;
    const std::vector<std::string> parts = parts_of(name);
    for (size_t i = 0; i < good.size(); ++i) {
      file(name)[i] = static_cast<char>(good[i] ^ (1 << (i % 8)));
      const std::string error = load_error();
      // A changed mark may also point to another manifest.
      const bool named = error.find(name) != std::string::npos ||
                         (name == "COMMIT" && error.find("manifest.pb") != std::string::npos);
      ASSERT_TRUE(named && error.find(parts[i]) != std::string::npos)
          << name << " byte " << i << ": " << error;
      if (i % 64 == 0) {
        EXPECT_FALSE(verify_checkpoint(files_, kPath).empty()) << name << " byte " << i;
      }
      file(name)[i] = good[i];
    }
  }
  EXPECT_EQ(load_error(), "");
}

TEST_F(DamageTest, EveryFileCutGrownOrGone) {
  for (const std::string& name : kFiles) {
    const std::string good = file(name);
    for (const std::string& bad : {good.substr(0, good.size() - 1), good.substr(0, good.size() / 2),
                                   std::string(), good + '\0', good + good}) {
      file(name) = bad;
      EXPECT_THAT(load_error(), HasSubstr(name)) << bad.size() << " of " << good.size() << " bytes";
      EXPECT_FALSE(verify_checkpoint(files_, kPath).empty());
    }
    files_.remove(kPath + "/" + name);
    EXPECT_THAT(load_error(), HasSubstr(name));
    EXPECT_FALSE(list_checkpoints(files_, kDir).front().valid);
    write_new_file(files_, kPath + "/" + name, good);
  }
  EXPECT_EQ(load_error(), "");
}

TEST_F(DamageTest, ReadErrorsAreReported) {
  files_.arm(FaultFileSystem::Fault::none, 0);
  ASSERT_EQ(load_error(), "");
  const int64_t calls = files_.operations();
  for (int64_t k = 1; k <= calls; ++k) {
    files_.arm(FaultFileSystem::Fault::fail_once, k, EIO);
    EXPECT_THAT(load_error(), HasSubstr("Input/output error")) << "call " << k;
  }
}

// What somebody could write who computes checksums too.
class HostileTest : public DamageTest {
 protected:
  HostileTest() {
    const RawCheckpoint raw = read_raw(files_, kPath);
    manifest_ = decode_manifest(raw.manifest, "manifest.pb");
    for (int s = 0; s < 2; ++s) {
      tables_.push_back(decode_table(raw.tables[static_cast<size_t>(s)], "table", manifest_,
                                     manifest_.files[static_cast<size_t>(2 * s)].bytes));
    }
  }
  // Applies the change, makes all checksums right, and expects a refusal in one line that says `reason`.
  void refused(const std::function<void(Manifest&, std::vector<BoxTable>&)>& change,
               const std::string& reason, const std::string& appended = "") {
    Manifest manifest = manifest_;
    std::vector<BoxTable> tables = tables_;
    change(manifest, tables);
    for (size_t s = 0; s < tables.size(); ++s) {
      std::string& text = file(table_file(static_cast<int>(s)));
      text = encode_table(tables[s]);
      if (manifest.files.size() <= 2 * s + 1) continue;
      manifest.files[2 * s + 1].bytes = static_cast<int64_t>(text.size());
      manifest.files[2 * s + 1].crc = crc32c(text);
    }
    std::string& text = file("manifest.pb");
    text = encode_manifest(manifest) + appended;
    file("COMMIT") = encode_commit({manifest_.save_uuid, static_cast<int64_t>(text.size()), crc32c(text)});
    const std::string error = load_error();
    EXPECT_THAT(error, HasSubstr(reason));
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
  void refused_box(const std::function<void(StoredBox&)>& change, const std::string& reason) {
    refused([&](Manifest&, std::vector<BoxTable>& tables) { change(tables[0].boxes[1]); }, reason);
  }
  void refused_tensor(const std::function<void(TensorInfo&)>& change, const std::string& reason) {
    refused([&](Manifest& manifest, std::vector<BoxTable>&) { change(manifest.tensors[0]); }, reason);
  }

  Manifest manifest_;
  std::vector<BoxTable> tables_;
};

TEST_F(HostileTest, Manifests) {
  const int64_t huge = int64_t{1} << 62;
  const auto manifest = [&](const std::function<void(Manifest&)>& change, const char* reason) {
    refused([&](Manifest& m, std::vector<BoxTable>&) { change(m); }, reason);
  };
  refused([](Manifest&, std::vector<BoxTable>&) {}, "");
  ASSERT_EQ(load_error(), "");
  refused([](Manifest&, std::vector<BoxTable>&) {},
          "TXC 2.0 needs a reader of version 2.0; this program reads 1.0", "\x08\x02");
  refused([](Manifest&, std::vector<BoxTable>&) {}, "needs a reader of version 1.9", "\x18\x09");
  refused([](Manifest&, std::vector<BoxTable>&) {}, "not a manifest", "\xFF");
  manifest([](Manifest& m) { m.save_uuid[0] ^= 1; }, "another save");
  manifest([](Manifest& m) { m.state.step = 4; }, "named for step 3");
  manifest([](Manifest& m) { m.state.step = -1; }, "step -1");
  manifest([](Manifest& m) { m.state.consumed_tokens = -1; }, "negative");
  manifest([](Manifest& m) { m.state.mesh.tp = 0; }, "mesh");
  manifest([](Manifest& m) { m.state.run_uuid = "\x1b[2J"; }, "run_uuid");
  for (const char* path : {"../../secret", "/etc/passwd", "shards/../../x", "shards/rank-00000.pb", ""}) {
    manifest([&](Manifest& m) { m.files[0].path = path; }, "files[0]");
  }
  manifest([](Manifest& m) { m.files[0].path = std::string("shards/rank-00000.safetensors\0", 30); },
           "files[0]");
  manifest([](Manifest& m) { m.files[0].bytes = -1; }, "files[0]");
  manifest([&](Manifest& m) { m.files[0].bytes = huge; }, "expected 46116860184");
  manifest([](Manifest& m) { m.files.clear(); }, "files lists 0");
  manifest([](Manifest& m) { m.files.pop_back(); }, "files lists 6");
  refused_tensor([&](TensorInfo& t) { t.global_shape = {huge, huge}; }, "too large");
  refused_tensor([&](TensorInfo& t) { t.global_shape = {-1}; }, "too large");
  refused_tensor([&](TensorInfo& t) { t.global_shape = {int64_t{1} << 32, int64_t{1} << 32}; }, "too large");
  refused_tensor([](TensorInfo& t) { t.global_shape[0] += 1; }, "elements");
  refused_tensor([](TensorInfo& t) { t.global_shape[0] -= 1; }, "outside");
  refused_tensor([](TensorInfo& t) { t.global_shape = {}; }, "other dims");
  refused_tensor([](TensorInfo& t) { t.name = ""; }, "name has 0 bytes");
  refused_tensor([](TensorInfo& t) { t.name = std::string(513, 'a'); }, "name has 513 bytes");
  refused_tensor([](TensorInfo& t) { t.name = "a\nb"; }, "printable");
  refused_tensor([](TensorInfo& t) { t.name = "zzz"; }, "out of order");
  refused_tensor([](TensorInfo& t) { t.dtype = DType::f64; }, "do not match");
  refused_tensor([](TensorInfo& t) { t.tied_to = "nothing"; }, "tied to nothing");
  manifest([](Manifest& m) { m.tensors[1] = m.tensors[0]; }, "twice");
  manifest([](Manifest& m) { m.tensors[6].tied_to = "head.weight"; }, "tied to head.weight");
  manifest([](Manifest& m) { m.tensors.resize(2); }, "tensor_id");
}

TEST_F(HostileTest, Tables) {
  const int64_t huge = int64_t{1} << 61;
  const auto table = [&](const std::function<void(BoxTable&)>& change, const char* reason) {
    refused([&](Manifest&, std::vector<BoxTable>& tables) { change(tables[0]); }, reason);
  };
  refused_box([](StoredBox& b) { b.tensor = 1000; }, "tensor_id 1000");
  refused_box([](StoredBox& b) { b.tensor = 6; }, "is tied");
  refused_box([](StoredBox& b) { b.box.offset[0] += 100; }, "outside");
  refused_box([&](StoredBox& b) { b.box.offset[0] = -1; }, "too large");
  refused_box([&](StoredBox& b) { b.box.extent[0] = huge; }, "too large");
  refused_box([](StoredBox& b) { b.box.offset = b.box.extent = {1}; }, "other dims");
  refused_box([](StoredBox& b) { b.begin += 4; }, "do not match");
  refused_box([](StoredBox& b) { b.end -= 4; }, "do not match");
  refused_box([](StoredBox& b) { b.key = std::string(2000, 'k'); }, "key of 2000");
  refused_box([](StoredBox& b) { b.key += "x"; }, "does not agree");
  refused_box([](StoredBox& b) { b.chunk_crcs.push_back(0); }, "2 checksums for 1 chunks");
  refused_box([](StoredBox& b) { b.chunk_crcs.clear(); }, "0 checksums for 1 chunks");
  table([](BoxTable& t) { t.boxes.pop_back(); }, "boxes end at");
  table([](BoxTable& t) { t.boxes.push_back(t.boxes[0]); }, "do not match");
  table([](BoxTable& t) { std::swap(t.boxes[0], t.boxes[1]); }, "do not match");
  table([](BoxTable& t) { t.header_bytes = 0; }, "header_bytes is 0");
  table([&](BoxTable& t) { t.header_bytes = huge; }, "header_bytes is");
  table([](BoxTable& t) { t.chunk_bytes = 0; }, "chunk_bytes is 0");
  table([&](BoxTable& t) { t.chunk_bytes = huge; }, "chunk_bytes is");
  // Two boxes of one shape claim the same place, so another place is held by none.
  refused(
      [](Manifest&, std::vector<BoxTable>& tables) {
        for (StoredBox& a : tables[0].boxes) {
          for (StoredBox& b : tables[1].boxes) {
            if (a.tensor == b.tensor && a.box.extent == b.box.extent) b.box.offset = a.box.offset;
          }
        }
      },
      "overlap");
}

TEST(Damage, LinksAreNotFollowed) {
  std::string pattern = testing::TempDir() + "damage_test_XXXXXX";
  const std::string root = ::mkdtemp(pattern.data());
  const std::string path = save_toy(*single_rank(), posix_file_system(), root + "/checkpoints", 3);
  const std::string data = path + "/shards/rank-00000.safetensors";
  std::filesystem::rename(data, root + "/elsewhere");
  std::filesystem::create_symlink(root + "/elsewhere", data);
  const std::vector<std::string> problems = verify_checkpoint(posix_file_system(), path);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_THAT(problems[0], testing::AllOf(HasSubstr(data), HasSubstr("symbolic link")));
  std::filesystem::remove_all(root);
}

}  // namespace
}  // namespace transxssm
