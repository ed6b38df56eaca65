// Saving, choosing, loading and keeping checkpoints, over ranks as threads and a disk in memory.
#include "checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "tests/checkpoint/toy_run.h"
#include "tests/support/fault_file_system.h"

namespace transxssm {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

const std::string kDir = "/run/checkpoints";

template <class E>
std::string message_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of this type was thrown";
  return "";
}

class CheckpointTest : public testing::Test {
 protected:
  std::string save(int64_t step, const Retention& retention = {}) {
    return save_toy(*one_, files_, kDir, step, 0, retention);
  }
  int64_t load_differences(const std::string& path, int64_t step) {
    ToyRank rank(0, 1, 2);
    load_checkpoint(*one_, files_, path, rank.tensors);
    return rank.differences(step);
  }
  std::vector<int64_t> steps() {
    std::vector<int64_t> all;
    for (const CheckpointInfo& info : list_checkpoints(files_, kDir)) all.push_back(info.step);
    return all;
  }
  void damage(const std::string& path) { disk_.contents(path)->back() ^= 1; }

  Disk disk_;
  FaultFileSystem files_{disk_};
  std::unique_ptr<Communicator> one_ = single_rank();
};

TEST_F(CheckpointTest, AnyMeshLoadsWhatAnyMeshSaved) {
  for (int writers : {1, 4}) {
    for (int saved_cut : {0, 1, 2, 3}) {
      Disk disk;
      std::string path;
      run_as_ranks(writers, [&](Communicator& comm) {
        FaultFileSystem files(disk);
        const std::string saved = save_toy(comm, files, kDir, 7, saved_cut);
        if (comm.rank() == 0) path = saved;
      });
      EXPECT_EQ(path, kDir + "/step-000000007");
      FaultFileSystem direct(disk);
      EXPECT_THAT(verify_checkpoint(direct, path), ElementsAre());
      for (int readers : {1, 2, 3, 8}) {
        std::atomic<int64_t> differences{0};
        run_as_ranks(readers, [&](Communicator& comm) {
          FaultFileSystem files(disk);
          ToyRank rank(comm.rank(), comm.size(), saved_cut + readers);
          const LoadedCheckpoint loaded = load_checkpoint(comm, files, path, rank.tensors);
          differences += rank.differences(7);
          EXPECT_EQ(loaded.state, toy_state(7));
          EXPECT_EQ(loaded.text, toy_text());
        });
        EXPECT_EQ(differences, 0) << writers << " writers, cut " << saved_cut << ", " << readers
                                  << " readers";
      }
    }
  }
}

TEST_F(CheckpointTest, TensorsOfSeveralChunksAndDtypes) {
  // 9 MB in three chunks, read back as columns, so that chunks are entered in the middle of rows.
  const int64_t rows = 1501;
  const int64_t columns = 1500;
  std::vector<float> values(static_cast<size_t>(rows * columns));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  std::vector<uint8_t> bytes{1, 2, 3};
  std::vector<int64_t> numbers{-5, INT64_MAX};
  std::vector<uint16_t> halves{0x3F80, 0x7FC1, 0x8000};
  const auto whole = [](const char* name, void* data, DType dtype, const Shape& shape) {
    Shape origin = shape;
    for (int d = 0; d < shape.rank(); ++d) origin[d] = 0;
    return CheckpointTensor{name,  TensorKind::buffer,         shape, origin,
                            shape, Tensor(data, dtype, shape), true,  ""};
  };
  const std::string path =
      save_checkpoint(*one_, files_, kDir, toy_state(1), toy_text(),
                      std::vector{whole("bytes", bytes.data(), DType::u8, {3}),
                                  whole("halves", halves.data(), DType::bf16, {3}),
                                  whole("matrix", values.data(), DType::f32, {rows, columns}),
                                  whole("numbers", numbers.data(), DType::i64, {2})});
  EXPECT_THAT(verify_checkpoint(files_, path), ElementsAre());
  std::vector<float> part(static_cast<size_t>(rows * 600));
  std::vector<uint8_t> bytes2(3);
  std::vector<int64_t> numbers2(2);
  std::vector<uint16_t> halves2(3);
  load_checkpoint(*one_, files_, path,
                  std::vector{whole("bytes", bytes2.data(), DType::u8, {3}),
                              whole("halves", halves2.data(), DType::bf16, {3}),
                              CheckpointTensor{"matrix",
                                               TensorKind::buffer,
                                               {rows, columns},
                                               {0, 850},
                                               {rows, 600},
                                               Tensor(part.data(), DType::f32, {rows, 600}),
                                               true,
                                               ""},
                              whole("numbers", numbers2.data(), DType::i64, {2})});
  int64_t differences = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < 600; ++c) {
      differences +=
          part[static_cast<size_t>(r * 600 + c)] != values[static_cast<size_t>(r * columns + 850 + c)];
    }
  }
  EXPECT_EQ(differences, 0);
  EXPECT_EQ(bytes, bytes2);
  EXPECT_EQ(numbers, numbers2);
  EXPECT_EQ(halves, halves2);
  // A wrong byte in the third chunk is named with its chunk, and leaves the tensor as it was.
  std::string& file = *disk_.contents(path + "/shards/rank-00000.safetensors");
  const size_t at = file.size() - 3 - 6 - 100;  // bytes and halves come last
  file[at] = static_cast<char>(file[at] ^ 1);
  const int64_t chunk = 4096 + 16 + 2 * (4 << 20);
  std::fill(part.begin(), part.end(), -1.0f);
  const CheckpointTensor target{"matrix",
                                TensorKind::buffer,
                                {rows, columns},
                                {0, 850},
                                {rows, 600},
                                Tensor(part.data(), DType::f32, {rows, 600}),
                                true,
                                ""};
  const std::vector<std::string> problems = verify_checkpoint(files_, path);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_THAT(problems[0], AllOf(HasSubstr("rank-00000.safetensors"), HasSubstr("tensor matrix (buffer)"),
                                 HasSubstr(fmt::format("bytes {} to {}", chunk, file.size() - 9)),
                                 HasSubstr("CRC32C is"), HasSubstr("expected")));
}

TEST_F(CheckpointTest, WeightsAloneMayBeLoaded) {
  const std::string path = save(3);
  ToyRank weights(0, 1, 1, false);
  load_checkpoint(*one_, files_, path, weights.tensors);
  EXPECT_EQ(weights.differences(3), 0);
}

TEST_F(CheckpointTest, EveryMismatchIsListedAndNothingIsLoaded) {
  const std::string path = save(3);
  std::vector<ToyTensor> model = toy_tensors();
  model[0].shape = {8, 6};
  model[2].name = "other";
  model.push_back({"more", {2}});
  ToyRank rank(0, 1, 0, true, model);
  std::vector<double> wide(5);
  for (CheckpointTensor& tensor : rank.tensors) {
    if (tensor.name == "norm.weight") tensor.data = Tensor(wide.data(), DType::f64, {5});
  }
  const std::string message =
      message_of<CheckpointError>([&] { load_checkpoint(*one_, files_, path, rank.tensors); });
  EXPECT_THAT(
      message,
      AllOf(HasSubstr(path), HasSubstr("embed.weight (exp_avg): shape [7, 6] in the checkpoint, [8, 6]"),
            HasSubstr("cube (master) is in the checkpoint, but not in the model"),
            HasSubstr("other (exp_avg_sq) is missing"), HasSubstr("more (master) is missing"),
            HasSubstr("norm.weight (master): f32 in the checkpoint, f64 in the model")));
  for (const CheckpointTensor& tensor : rank.tensors) {
    if (tensor.name == "scalar") {
      EXPECT_EQ(*tensor.data.data<float>(), -1.0f);
    }
  }
  ToyRank tied(0, 1, 0);
  tied.tensors.back().tied_to = "";
  EXPECT_THAT(
      message_of<CheckpointError>([&] { load_checkpoint(*one_, files_, path, tied.tensors); }),
      HasSubstr("head.weight (master): tied to embed.weight in the checkpoint, not tied in the model"));
}

TEST_F(CheckpointTest, MismatchOnOneRankStopsAll) {
  save(3);
  std::atomic<int> refused{0};
  run_as_ranks(3, [&](Communicator& comm) {
    FaultFileSystem files(disk_);
    ToyRank rank(comm.rank(), comm.size(), 0);
    if (comm.rank() == 2) rank.tensors[0].name = "typo";
    const std::string message = message_of<CheckpointError>(
        [&] { load_checkpoint(comm, files, kDir + "/step-000000003", rank.tensors); });
    refused += message.find("rank 2: typo (master) is missing") != std::string::npos;
  });
  EXPECT_EQ(refused, 3);
}

TEST_F(CheckpointTest, OwnersMustHoldEveryElementOnce) {
  ToyRank rank(0, 1, 0);
  rank.tensors[0].owner = false;
  const auto attempt = [&] { save_checkpoint(*one_, files_, kDir, toy_state(1), toy_text(), rank.tensors); };
  EXPECT_THAT(message_of<InternalError>(attempt),
              HasSubstr("embed.weight (master): owners hold 0 of 42 elements"));
  EXPECT_EQ(steps(), std::vector<int64_t>());
}

TEST_F(CheckpointTest, SelectsTheNewestCommitted) {
  EXPECT_EQ(newest_checkpoint(*one_, files_, kDir), std::nullopt);
  save(1);
  save(5);
  EXPECT_EQ(*disk_.contents(kDir + "/LATEST"), "step-000000005\n");
  // The hint is never believed.
  *disk_.contents(kDir + "/LATEST") = "step-000000001\n";
  EXPECT_EQ(newest_checkpoint(*one_, files_, kDir), kDir + "/step-000000005");
  EXPECT_EQ(named_checkpoint(*one_, files_, "/run"), kDir + "/step-000000005");
  EXPECT_EQ(named_checkpoint(*one_, files_, kDir), kDir + "/step-000000005");
  EXPECT_EQ(named_checkpoint(*one_, files_, kDir + "/step-000000001"), kDir + "/step-000000001");
  EXPECT_THAT(message_of<CheckpointError>([&] { named_checkpoint(*one_, files_, "/nowhere"); }),
              HasSubstr("/nowhere"));
  // A copy that was interrupted before its mark.
  files_.remove(kDir + "/step-000000005/COMMIT");
  EXPECT_EQ(newest_checkpoint(*one_, files_, kDir), kDir + "/step-000000001");
  EXPECT_THROW(named_checkpoint(*one_, files_, kDir + "/step-000000005"), CheckpointError);
  // Names that only look like checkpoints.
  for (const char* name : {"step-10", "step-0000000099", "step-000000009.tmp", "xstep-000000009"}) {
    files_.create_directory(kDir + "/" + name, 0777);
  }
  EXPECT_EQ(steps(), (std::vector<int64_t>{5, 1}));
}

TEST_F(CheckpointTest, FindsWhatAPathNames) {
  const auto of_run = [](const std::string& run) {
    return run == "/run" ? std::string("/disk/saved") : run == "/lost" ? std::string("/away") : std::string();
  };
  const auto found = [&](const std::string& path) {
    const NamedCheckpoints named = find_checkpoints(files_, path, of_run);
    return named.directory + " " + named.checkpoint;
  };
  save(1);
  save(5);
  EXPECT_EQ(found(kDir), kDir + " ");
  EXPECT_EQ(found(kDir + "//"), kDir + " ");
  EXPECT_EQ(found(kDir + "/step-000000005/"), kDir + " " + kDir + "/step-000000005");
  // Another name, and one that counts backwards: the mark decides, not the name.
  files_.rename(kDir + "/step-000000005", kDir + "/best");
  EXPECT_EQ(found(kDir + "/best"), kDir + " " + kDir + "/best");
  EXPECT_EQ(named_checkpoint(*one_, files_, kDir + "/best"), kDir + "/best");
  EXPECT_EQ(examine_checkpoint(files_, kDir + "/best").step, 5);
  damage(kDir + "/best/shards/rank-00000.safetensors");
  EXPECT_EQ(named_checkpoint(*one_, files_, kDir + "/best", {}, Fallback::previous),
            kDir + "/step-000000001");
  // The configuration's directory, before one that lies in the run; a missing one is not replaced by another.
  EXPECT_THAT(message_of<CheckpointError>([&] { found("/run"); }), HasSubstr("/disk/saved"));
  create_directories(files_, "/disk/saved");
  EXPECT_EQ(found("/run"), "/disk/saved ");
  EXPECT_THAT(message_of<CheckpointError>([&] { named_checkpoint(*one_, files_, "/run", of_run); }),
              HasSubstr("there is no whole checkpoint in /disk/saved"));
  create_directories(files_, "/lost/checkpoints");
  EXPECT_THAT(message_of<CheckpointError>([&] { found("/lost"); }), HasSubstr("/away"));
  // Nothing that was ever a run.
  create_directories(files_, "/other/photos");
  EXPECT_THAT(message_of<CheckpointError>([&] { found("/other"); }), HasSubstr("neither the COMMIT"));
  for (const char* word : {"auto", "none", ""})
    EXPECT_THAT(message_of<CheckpointError>([&] { named_checkpoint(*one_, files_, word); }),
                HasSubstr("there is no such directory"));
}

TEST_F(CheckpointTest, DamagedCheckpointNamesTheOlderWholeOne) {
  save(1);
  save(2);
  save(3);
  damage(kDir + "/step-000000002/shards/rank-00000.safetensors");
  damage(kDir + "/step-000000003/manifest.pb");
  std::atomic<int> refused{0};
  run_as_ranks(2, [&](Communicator& comm) {
    FaultFileSystem files(disk_);
    const std::string message = message_of<CheckpointError>([&] { newest_checkpoint(comm, files, kDir); });
    EXPECT_THAT(message, AllOf(HasSubstr("step-000000003/manifest.pb"), HasSubstr("CRC32C"),
                               HasSubstr("is step 1:"), HasSubstr("--set checkpoint.fallback=previous")));
    EXPECT_EQ(newest_checkpoint(comm, files, kDir, Fallback::previous), kDir + "/step-000000001");
    refused += message_of<CheckpointError>([&] {
                 ToyRank rank(comm.rank(), comm.size(), 1);
                 load_checkpoint(comm, files, kDir + "/step-000000002", rank.tensors);
               }).find("is step 1:") != std::string::npos;
  });
  EXPECT_EQ(refused, 2);
  EXPECT_EQ(load_differences(kDir + "/step-000000001", 1), 0);
}

TEST_F(CheckpointTest, RetentionKeepsWhatItPromises) {
  const Retention retention{2, 4, kDir + "/step-000000001"};
  for (int64_t step = 1; step <= 9; ++step) save(step, retention);
  EXPECT_EQ(steps(), (std::vector<int64_t>{9, 8, 4, 1}));
  // A damaged one is not counted as one of the last two, nor deleted.
  damage(kDir + "/step-000000009/manifest.pb");
  save(10, {2, 0, ""});
  EXPECT_EQ(steps(), (std::vector<int64_t>{10, 9, 8}));
  damage(kDir + "/step-000000010/manifest.pb");
  EXPECT_THAT(prune_checkpoints(files_, kDir, {1, 0, ""}), ElementsAre());
  EXPECT_EQ(steps(), (std::vector<int64_t>{10, 9, 8}));
  EXPECT_THAT(files_.list(kDir), ElementsAre("LATEST", "step-000000008", "step-000000009", "step-000000010"));
}

TEST_F(CheckpointTest, SavingAStepAgainReplacesIt) {
  save(4);
  damage(kDir + "/step-000000004/shards/rank-00000.safetensors");
  save(4);
  EXPECT_THAT(verify_checkpoint(files_, kDir + "/step-000000004"), ElementsAre());
  EXPECT_THAT(files_.list(kDir), ElementsAre("LATEST", "step-000000004"));
}

TEST_F(CheckpointTest, LeftoversOfDeadRunsAreRemoved) {
  save(4);
  const std::string uuid = make_uuid();
  for (const std::string& name : {".tmp-000000009-" + uuid, ".trash-000000001-" + uuid,
                                  std::string(".tmp-mine"), std::string("step-000000009")}) {
    files_.create_directory(kDir + "/" + name, 0777);
    write_new_file(files_, kDir + "/" + name + "/file", "text");
  }
  EXPECT_THAT(remove_leftovers(files_, kDir),
              ElementsAre(".tmp-000000009-" + uuid, ".trash-000000001-" + uuid));
  EXPECT_THAT(files_.list(kDir), ElementsAre(".tmp-mine", "LATEST", "step-000000004", "step-000000009"));
}

TEST_F(CheckpointTest, FullDiskIsReportedInBytes) {
  save(1);
  disk_.capacity = 100'000;
  const std::string early = message_of<CheckpointSaveError>([&] { save(2); });
  EXPECT_THAT(early, AllOf(HasSubstr("step 2 was not saved"), HasSubstr(kDir), HasSubstr("needs 105"),
                           HasSubstr("bytes are free")));
  // Full only once it is written to: another job was faster.
  disk_.capacity = INT64_MAX;
  std::atomic<int> reported{0};
  run_as_ranks(4, [&](Communicator& comm) {
    FaultFileSystem files(disk_);
    if (comm.rank() == 2) files.arm(FaultFileSystem::Fault::fail_from, 1, ENOSPC);
    const std::string message = message_of<CheckpointSaveError>([&] { save_toy(comm, files, kDir, 2); });
    EXPECT_THAT(message,
                AllOf(HasSubstr("rank 2: "), HasSubstr("shards/rank-00002.safetensors"),
                      HasSubstr("No space left on device"), HasSubstr("(needs"), Not(HasSubstr("rank 1"))));
    ++reported;
  });
  EXPECT_EQ(reported, 4);
  EXPECT_THAT(files_.list(kDir), ElementsAre("LATEST", "step-000000001"));
  EXPECT_EQ(load_differences(kDir + "/step-000000001", 1), 0);
}

TEST_F(CheckpointTest, UnwritableDirectoryIsFoundBeforeTheFirstStep) {
  check_writable(*one_, files_, kDir, 1000);
  EXPECT_THAT(files_.list(kDir), ElementsAre());
  files_.arm(FaultFileSystem::Fault::fail_from, 1, EROFS);
  EXPECT_THAT(message_of<CheckpointSaveError>([&] { check_writable(*one_, files_, kDir, 1000); }),
              AllOf(HasSubstr(kDir), HasSubstr("Read-only file system")));
  files_.arm(FaultFileSystem::Fault::none, 0);
  disk_.capacity = 5000;
  EXPECT_THAT(message_of<CheckpointSaveError>([&] { check_writable(*one_, files_, kDir, 6000); }),
              HasSubstr("needs 6000 bytes, 5000 bytes are free"));
}

TEST_F(CheckpointTest, ManifestTellsWhatIsInside) {
  const std::string path = save(3);
  const LoadedCheckpoint loaded = read_manifest(files_, path);
  EXPECT_EQ(loaded.state, toy_state(3));
  EXPECT_EQ(loaded.text, toy_text());
  EXPECT_EQ(loaded.num_files, 5);
  ASSERT_EQ(loaded.tensors.size(), 16u);
  EXPECT_EQ(loaded.tensors[0].name, "cube");
  EXPECT_EQ(loaded.tensors[0].global_shape, (Shape{3, 4, 5}));
  EXPECT_EQ(loaded.tensors[6].name, "head.weight");
  EXPECT_EQ(loaded.tensors[6].tied_to, "embed.weight");
  run_as_ranks(2, [&](Communicator& comm) {
    FaultFileSystem files(disk_);
    EXPECT_EQ(read_manifest(comm, files, path).state, toy_state(3));
  });
}

}  // namespace
}  // namespace transxssm
