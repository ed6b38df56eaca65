// Which attention runs: cuDNN's for whole rows on Hopper, our own for everything else.
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "kernels/cuda/attention_flash.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/ops.h"
#include "runtime/cuda/device.h"
#include "runtime/log.h"

namespace transxssm::cuda {

namespace {

bool is_hopper(int index) {
  thread_local std::map<int, int> majors;
  const auto [entry, is_new] = majors.try_emplace(index, 0);
  if (is_new) entry->second = device_properties(index).compute_major;
  return entry->second == 9;
}

// Why cuDNN cannot be used; empty where it can.
template <class Args>
std::string against_cudnn(const Stream& stream, const Args& args) {
  const int64_t p = args.q.size(3);
  if (args.first_key) return "documents may start inside the rows";
  if (args.query_offset != 0 || args.q.size(1) != args.k.size(1)) return "queries are part of the keys";
  if (p != 64 && p != 128) return "heads of neither 64 nor 128";
  if (!is_hopper(stream.device().index)) return "not a Hopper GPU";
  return cudnn::missing();
}
std::string against_cudnn_for(const Stream& stream, const AttentionForward& args) {
  return against_cudnn(stream, args);
}
std::string against_cudnn_for(const Stream& stream, const AttentionBackward& args) {
  const std::string reason = against_cudnn(stream, args);
  return reason.empty() && args.deterministic ? "the same bits are wanted on every run" : reason;
}

// What is said of an operation on tensors of these sizes, and whether cuDNN has failed on them: once each.
class Record {
 public:
  bool failed(const std::string& what) {
    const std::lock_guard lock(mutex_);
    return failures_.count(what) > 0;
  }
  void fail(const std::string& what, const std::string& why) {
    const std::lock_guard lock(mutex_);
    if (failures_.insert(what).second) log_warning("{}: cuDNN failed, our own kernel runs: {}", what, why);
  }
  void say(const std::string& line) {
    const std::lock_guard lock(mutex_);
    if (said_.insert(line).second) log_info("{}", line);
  }

 private:
  std::mutex mutex_;
  std::set<std::string> failures_, said_;
};

template <class Args>
void choose(Stream& stream, const Args& args, const char* direction) {
  static Record record;
  check_attention(args);
  const std::string what = fmt::format("attention {} {} over {} keys of {} heads", direction,
                                       args.q.shape().to_string(), args.k.size(1), args.k.size(2));
  const std::string against = against_cudnn_for(stream, args);
  if (against.empty() && !record.failed(what)) {
    try {
      const int64_t engine = cudnn::run(stream, args);
      return record.say(fmt::format("{}: cuDNN, engine {}", what, engine));
    } catch (const DeviceError& error) {
      record.fail(what, error.what());
    }
  }
  if (!against.empty()) record.say(fmt::format("{}: our own kernel: {}", what, against));
  run_flash(stream, args);
}

}  // namespace

void run(Stream& stream, const AttentionForward& args) {
  choose(stream, args, "forward");
}
void run(Stream& stream, const AttentionBackward& args) {
  choose(stream, args, "backward");
}

}  // namespace transxssm::cuda
