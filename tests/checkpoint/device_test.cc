// Tensors on a device are saved and loaded piece by piece, and the host touches none of their memory.
#include <gtest/gtest.h>

#include <cstring>

#include "checkpoint/chunk_source.h"
#include "parallel/local.h"
#include "runtime/stream.h"
#include "tests/checkpoint/toy_run.h"
#include "tests/support/guarded_device.h"
#include "tests/support/temporary_directory.h"

namespace transxssm {
namespace {

// Tensors of one rank copied to the device, or from it.
class DeviceCopy {
 public:
  DeviceCopy(Stream& stream, std::vector<CheckpointTensor>& host) : stream_(stream), host_(host) {
    int64_t bytes = 0;
    for (const CheckpointTensor& t : host) bytes += t.data ? carved_bytes(t.data.dtype(), t.data.shape()) : 0;
    arena_ = Arena(bytes, stream.device());
    Carver carver = arena_.carver();
    for (const CheckpointTensor& t : host) {
      CheckpointTensor& copy = tensors.emplace_back(t);
      if (t.data) copy.data = carver.take(t.data.dtype(), t.data.shape());
      copy.stream = &stream;
    }
  }
  void upload() { copy_all(true); }
  void download() { copy_all(false); }
  std::vector<CheckpointTensor> tensors;

 private:
  void copy_all(bool up) {
    for (size_t i = 0; i < tensors.size(); ++i)
      transfer(stream_, up ? host_[i].data : tensors[i].data, up ? tensors[i].data : host_[i].data);
    stream_.synchronize();
  }
  Stream& stream_;
  std::vector<CheckpointTensor>& host_;
  Arena arena_;
};

TEST(DeviceCheckpoint, WhatADeviceSavedIsLoadedOnTheHostAndBack) {
  WithGuardedDevice guarded;
  TemporaryDirectory directory;
  FileSystem& files = posix_file_system();
  run_as_ranks(2, [&](Communicator& world) {
    Stream stream(Device{DeviceKind::cuda, 0});
    ToyRank saved(world.rank(), 2, 0);
    saved.fill(3);
    DeviceCopy on_device(stream, saved.tensors);
    on_device.upload();
    const std::string path =
        save_checkpoint(world, files, directory.path(), toy_state(3), {}, on_device.tensors);

    ToyRank loaded(world.rank(), 2, 1);
    load_checkpoint(world, files, path, loaded.tensors);
    EXPECT_EQ(loaded.differences(3), 0);

    ToyRank back(world.rank(), 2, 2);
    DeviceCopy again(stream, back.tensors);
    load_checkpoint(world, files, path, again.tensors);
    again.download();
    EXPECT_EQ(back.differences(3), 0);
  });
}

TEST(DeviceCheckpoint, ChunksComeInOrder) {
  WithGuardedDevice guarded;
  Stream stream(Device{DeviceKind::cuda, 0});
  std::vector<float> values(2500);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const Tensor host(values.data(), DType::f32, {2500});
  const Arena arena(host.num_bytes(), stream.device());
  CheckpointTensor tensor{.name = "x", .data = arena.carver().take(DType::f32, {2500}), .stream = &stream};
  transfer(stream, host, tensor.data);
  for (int64_t chunk_bytes : {64, 4096, 10000, 1 << 20}) {
    ChunkSource source(chunk_bytes);
    source.open(tensor);
    std::vector<float> got(values.size());
    size_t at = 0;
    for (auto chunk = source.next(); !chunk.empty(); chunk = source.next()) {
      EXPECT_LE(chunk.size(), static_cast<size_t>(chunk_bytes));
      std::memcpy(reinterpret_cast<std::byte*>(got.data()) + at, chunk.data(), chunk.size());
      at += chunk.size();
    }
    EXPECT_EQ(at, values.size() * sizeof(float));
    EXPECT_EQ(got, values) << chunk_bytes;
  }
}

// A save that fails while a chunk is on its way.
TEST(DeviceCheckpoint, ASourceMayEndEarly) {
  WithGuardedDevice guarded;
  Stream stream(Device{DeviceKind::cuda, 0});
  const Arena arena(4096, stream.device());
  CheckpointTensor tensor{.name = "x", .data = arena.carver().take(DType::f32, {1024}), .stream = &stream};
  {
    ChunkSource source(256);
    source.open(tensor);
    EXPECT_EQ(source.next().size(), 256u);
  }
  stream.synchronize();
}

}  // namespace
}  // namespace transxssm
