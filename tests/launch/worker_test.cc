#include "launch/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels/gemm.h"
#include "launch/hosts.h"
#include "launch/progress.h"
#include "launch/signals.h"
#include "parallel/local.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Environment environment(std::map<std::string, const char*> values) {
  return [values](const char* name) { return values.contains(name) ? values.at(name) : nullptr; };
}

TEST(Worker, OpenMpiNamesTheLocalRankBeforeSlurm) {
  EXPECT_EQ(local_rank_from(environment({})), -1);
  EXPECT_EQ(local_rank_from(environment({{"SLURM_LOCALID", "3"}})), 3);
  EXPECT_EQ(local_rank_from(environment({{"SLURM_LOCALID", "0"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "2"}})), 2);
}

TEST(Worker, LaunchersAreRecognised) {
  EXPECT_FALSE(launched_rank(environment({})).mpi);
  EXPECT_EQ(launched_rank(environment({})).size, 1);
  const LaunchedRank open_mpi =
      launched_rank(environment({{"OMPI_COMM_WORLD_SIZE", "8"}, {"OMPI_COMM_WORLD_RANK", "5"}}));
  EXPECT_TRUE(open_mpi.mpi);
  EXPECT_EQ(open_mpi.size, 8);
  EXPECT_EQ(open_mpi.rank, 5);
  EXPECT_TRUE(launched_rank(environment({{"PMIX_RANK", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}})).mpi);
  EXPECT_FALSE(launched_rank(environment({{"SLURM_STEP_NUM_TASKS", "1"}})).mpi);  // a batch script
  EXPECT_THROW(launched_rank(environment({{"SLURM_STEP_NUM_TASKS", "2"}})), UsageError);
}

TEST(Worker, CoresAreSharedEvenly) {
  const std::vector<int> four{0, 1, 2, 3};
  EXPECT_THAT(core_share({four}, 0), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(core_share({four, four}, 1), ElementsAre(2, 3));
  EXPECT_THAT(core_share({four, four, four}, 0), ElementsAre(0));
  EXPECT_THAT(core_share({four, four, four}, 2), ElementsAre(2, 3));
  EXPECT_THAT(core_share({{4, 7}, {4, 7}, {4, 7}}, 2), ElementsAre(4));     // more ranks than cores
  EXPECT_THAT(core_share({{0, 1}, {2, 3, 4}}, 1), ElementsAre(2, 3, 4));    // bound by the launcher
  EXPECT_THAT(core_share({{0, 1, 2}, {2, 3}, {0, 3}}, 1), ElementsAre(2));  // bound to sets that overlap
}

TEST(Worker, OneRankWithoutALauncher) {
  std::vector<int> seen;
  const int code = run_worker([&](Worker& worker) {
    seen = {worker.rank(), worker.size(), worker.local_rank(), worker.num_local_ranks()};
    EXPECT_EQ(worker.take_threads(3, false), 3);
    EXPECT_GE(worker.take_threads(0, false), 1);
    return 75;
  });
  EXPECT_EQ(code, 75);
  EXPECT_THAT(seen, ElementsAre(0, 1, 0, 1));
}

TEST(Worker, EveryExceptionHasItsExitCode) {
  const auto code_of = [](const std::function<void()>& fail) {
    ::testing::internal::CaptureStderr();
    const int code = run_worker([&](Worker&) -> int {
      fail();
      return 0;
    });
    EXPECT_THAT(::testing::internal::GetCapturedStderr(),
                HasSubstr("exit code " + std::to_string(code) + ")"));
    return code;
  };
  EXPECT_EQ(code_of([] { throw NumericsError("loss is nan"); }), 6);
  EXPECT_EQ(code_of([] { throw CommunicationError("rank 3 is lost"); }), 7);
  EXPECT_EQ(code_of([] { throw UsageError("no"); }), 2);
  EXPECT_EQ(code_of([] { throw std::bad_alloc(); }), 8);
  // Of the operating system, where nobody gave it another name: a disk, a limit, a path.
  EXPECT_EQ(code_of([] { throw std::system_error(ENOSPC, std::generic_category(), "write x"); }), 9);
  EXPECT_EQ(code_of([] { throw std::system_error(EAGAIN, std::generic_category(), "thread"); }), 8);
  EXPECT_EQ(code_of([] { throw std::system_error(ENAMETOOLONG, std::generic_category(), "open x"); }), 2);
  EXPECT_EQ(code_of([] { static_cast<void>(std::filesystem::file_size("/no/such/file")); }), 2);
  EXPECT_EQ(code_of([] { throw std::length_error("vector"); }), 8);
  EXPECT_EQ(code_of([] { throw std::logic_error("bug"); }), 1);
  EXPECT_EQ(code_of([] { throw 3; }), 1);
}

// From outside, as a launcher sends it; returns when it has been noted.
void send(int signal, StopRequest noted) {
  kill(getpid(), signal);
  while (pending_signal() != noted) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

TEST(Signals, EveryRankAgrees) {
  install_signal_handlers();
  std::atomic<int> agreed{0}, nothing{0};
  run_as_ranks(3, [&](Communicator& world) {
    if (agree_on_signal(world).request == StopRequest::none) ++nothing;
    world.barrier();
    if (world.rank() == 0) send(SIGUSR2, StopRequest::save_and_go_on);
    world.barrier();
    const AgreedSignal save = agree_on_signal(world);  // one rank takes the note, all of them learn of it
    if (save.request == StopRequest::save_and_go_on && save.signal == SIGUSR2) ++agreed;
    if (agree_on_signal(world).request == StopRequest::none) ++nothing;  // and it is done with
    if (world.rank() == 1) send(SIGTERM, StopRequest::save_and_exit);
    world.barrier();
    const AgreedSignal stop = agree_on_signal(world);
    if (stop.request == StopRequest::save_and_exit && stop.signal == SIGTERM && stop.rank == 0) ++agreed;
  });
  EXPECT_EQ(agreed, 6);
  EXPECT_EQ(nothing, 6);
  EXPECT_EQ(pending_signal(), StopRequest::save_and_exit);
  EXPECT_STREQ(signal_name(SIGUSR1), "SIGUSR1");
  install_signal_handlers();
  EXPECT_EQ(pending_signal(), StopRequest::none);
}

// Matrix kernels made at run time use the stack pointer as they like: a handler on their thread would write
// its frame into their data.
TEST(Signals, DoNotInterruptMatrixProducts) {
  install_signal_handlers();
  // The three products of a linear layer, at a training step's sizes.
  constexpr int64_t kTokens = 1024, kIn = 256, kOut = 1408;
  auto values = [](int64_t count) {
    std::vector<float> v(static_cast<size_t>(count));
    for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i % 7) - 3;
    return v;
  };
  std::vector<float> x = values(kTokens * kIn), w = values(kOut * kIn), dy = values(kTokens * kOut);
  std::vector<float> y(dy.size()), dx(x.size()), dw(w.size()), first_y, first_dx, first_dw;
  std::atomic<bool> done{false};
  std::thread sender([&] {
    while (!done) {
      kill(getpid(), SIGUSR2);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  Stream stream(1);
  auto matrix = [](std::vector<float>& v, int64_t rows) {
    return Tensor(v.data(), DType::f32, {rows, static_cast<int64_t>(v.size()) / rows});
  };
  bool same = true;
  for (int i = 0; i < 100 && same; ++i) {
    std::fill(dw.begin(), dw.end(), 0.0f);
    run(stream,
        Gemm{.a = matrix(x, kTokens), .b = matrix(w, kOut), .c = matrix(y, kTokens), .transpose_b = true});
    run(stream, Gemm{.a = matrix(dy, kTokens), .b = matrix(w, kOut), .c = matrix(dx, kTokens)});
    run(stream, Gemm{.a = matrix(dy, kTokens),
                     .b = matrix(x, kTokens),
                     .c = matrix(dw, kOut),
                     .transpose_a = true,
                     .accumulate = true});
    if (i == 0) first_y = y, first_dx = dx, first_dw = dw;
    same = y == first_y && dx == first_dx && dw == first_dw;
  }
  done = true;
  sender.join();
  EXPECT_TRUE(same);
  install_signal_handlers();
}

// Sends a signal and gives it time to be taken.
void send_and_wait(int signal, std::chrono::milliseconds time) {
  kill(getpid(), signal);
  std::this_thread::sleep_for(time);
}

TEST(SignalsDeathTest, OnlyTheThirdCtrlCEndsAtOnce) {
  using std::chrono::milliseconds;
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        install_signal_handlers();
        send(SIGUSR1, StopRequest::save_and_exit);
        for (int signal : {SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGTERM})  // a scheduler's
          send_and_wait(signal, milliseconds(20));
        send_and_wait(SIGINT, milliseconds(20));
        for (int i = 0; i < 5; ++i) send_and_wait(SIGINT, milliseconds(20));  // the same keystroke
        std::fprintf(stderr, "goes on");
        send_and_wait(SIGINT, milliseconds(0));
        std::this_thread::sleep_for(milliseconds(1100));
        send_and_wait(SIGINT, milliseconds(1100));
        std::fprintf(stderr, "still does");
        send_and_wait(SIGINT, milliseconds(5000));
      },
      ::testing::ExitedWithCode(128 + SIGINT), "goes on.*once more ends at once.*still does");
}

TEST(Signals, HangUpStaysIgnored) {
  std::signal(SIGHUP, SIG_IGN);  // nohup
  install_signal_handlers();
  kill(getpid(), SIGHUP);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(pending_signal(), StopRequest::none);
  std::signal(SIGHUP, SIG_DFL);
  install_signal_handlers();
  send(SIGHUP, StopRequest::save_and_exit);
  EXPECT_STREQ(signal_name(SIGHUP), "SIGHUP");
  install_signal_handlers();
}

TEST(Hosts, AreNamedWithTheirRanks) {
  EXPECT_EQ(describe_hosts({"a", "a"}), "host a");
  EXPECT_EQ(describe_hosts({"a", "a", "b", "a", "c"}), "3 hosts: a (ranks 0-1, 3), b (rank 2), c (rank 4)");
  std::vector<std::string> many;
  for (int rank = 0; rank < 512; ++rank) many.push_back("node" + std::to_string(rank / 8));
  const std::string text = describe_hosts(many);
  EXPECT_THAT(text, HasSubstr("64 hosts: node0 (ranks 0-7), node1 (ranks 8-15)"));
  EXPECT_THAT(text, HasSubstr(" and 56 more"));
}

Progress progress(int rank, int64_t step, int peer) {
  Progress p;
  p.rank = rank;
  p.host = "h";
  p.pid = 100 + rank;
  p.step = step;
  p.action = "train";
  p.waiting = peer >= 0;
  p.operation = p.waiting ? "all_reduce dp #4" : "";
  p.peer = peer;
  return p;
}

TEST(Progress, TheVerdictNamesTheRankThatOthersWaitFor) {
  const std::string chain = progress_table({progress(0, 7, 2), progress(1, 7, 0), progress(2, 7, -1)});
  EXPECT_THAT(chain, HasSubstr("verdict: rank 2 (h, pid 102) is behind: step 7, train"));
  EXPECT_THAT(chain, HasSubstr("waits for rank 2 in all_reduce dp #4"));
  EXPECT_THAT(progress_table({progress(0, 7, 1), progress(1, 7, 0)}),
              HasSubstr("verdict: ranks wait for one another: 0 -> 1 -> 0"));
  EXPECT_THAT(progress_table({progress(0, 8, -1), progress(1, 7, -1)}), HasSubstr("verdict: rank 1 "));
  EXPECT_THAT(progress_table({progress(0, 8, 5)}), HasSubstr("verdict: rank 5 left no record"));
  // Of many ranks those that do the same have one line.
  std::vector<Progress> many;
  for (int rank = 0; rank < 512; ++rank) many.push_back(progress(rank, 7, rank == 9 ? -1 : 9));
  const std::string table = progress_table(many);
  EXPECT_LE(std::count(table.begin(), table.end(), '\n'), 4);
  EXPECT_THAT(table, HasSubstr("and 510 other ranks"));
  EXPECT_THAT(table, HasSubstr("verdict: rank 9 (h, pid 109) is behind"));
  Progress stopped = progress(1, 9, 0);
  stopped.state = "stopped";
  EXPECT_THAT(progress_table({progress(0, 8, 1), stopped}),
              HasSubstr("verdict: rank 1 (h, pid 101) is stopped"));
}

TEST(Progress, RecordsAreReadFromFiles) {
  EXPECT_EQ(progress_table(), "");
  publish_progress(1, "before open");  // nothing to write to
  const std::string directory = ::testing::TempDir() + "/progress_test_" + std::to_string(getpid());
  EXPECT_THROW(open_progress(directory + "/missing", 0, 1), UsageError);
  std::filesystem::create_directories(directory);
  run_as_ranks(2, [&](Communicator& world) {
    const auto shown = [&] { return read_progress(directory, 2).at(0); };
    if (world.rank() == 0) {
      open_progress(directory, 1, 2);
      publish_progress(
          41, "train 1F3 and a name that is longer than the field of the record, which is cut to its size");
      EXPECT_EQ(shown().rank, 1);
      EXPECT_EQ(shown().step, 41);
      EXPECT_EQ(shown().pid, getpid());
      EXPECT_EQ(shown().action.size(), 63u);
      EXPECT_EQ(shown().state, "");
      EXPECT_FALSE(shown().waiting);
      EXPECT_THAT(progress_table(), HasSubstr("rank 1 "));
    }
    world.barrier();
    // A rank that comes late is what the other waits for while it does.
    if (world.rank() == 1) {
      for (int i = 0; i < 500 && !shown().waiting; ++i) usleep(10000);
      EXPECT_TRUE(shown().waiting);
      EXPECT_EQ(shown().peer, 1);
      EXPECT_THAT(shown().operation, HasSubstr("world"));
    }
    world.barrier();
    if (world.rank() == 1) return;
    EXPECT_FALSE(shown().waiting);
    // After a wait in vain it still shows: whoever reports for all may read it before this rank has said
    // more.
    world.set_timeout(std::chrono::milliseconds(20));
    float x = 0;
    EXPECT_THROW(world.receive(Tensor(&x, DType::f32, {1}), 1).wait(), CommunicationError);
    EXPECT_TRUE(shown().waiting);
    EXPECT_THAT(shown().operation, HasSubstr("receive"));
    publish_failure(6, "loss is nan");
    EXPECT_EQ(shown().failure, 6);
    EXPECT_EQ(shown().message, "loss is nan");
  });
  clear_progress(directory);
  EXPECT_TRUE(read_progress(directory, 2).empty());
  std::filesystem::remove_all(directory);
}

TEST(TensorGroups, ThatSpanHostsAreNamed) {
  const std::vector<std::string> paired = {"a", "a", "b", "b"}, mixed = {"a", "b", "a", "b"};
  EXPECT_EQ(tensor_groups_apart(paired, 2), "");
  EXPECT_EQ(tensor_groups_apart(mixed, 1), "");
  EXPECT_EQ(tensor_groups_apart({"a"}, 1), "");
  EXPECT_EQ(tensor_groups_apart(mixed, 2),
            "2 tensor-parallel groups span hosts (such as ranks 0 to 1, on a, b): every layer waits for the "
            "network. "
            "Let consecutive ranks share a host, a multiple of parallel.tp of them (mpirun --map-by slot, or "
            "--map-by "
            "ppr:N:node).");
  EXPECT_EQ(
      tensor_groups_apart(paired, 4),
      "1 tensor-parallel group spans hosts (ranks 0 to 3, on a, b): every layer waits for the network. Set "
      "parallel.tp to at most the ranks of a host (2), or start more ranks on each.");
}

}  // namespace
}  // namespace transxssm
