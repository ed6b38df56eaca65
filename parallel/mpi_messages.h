// Messages between MPI processes, by their ranks in MPI's world and a tag. Everything that MPI does here has
// a time limit or is asked for again and again; nothing blocks.
//
// A message given up before it is complete (Transfer::release) is cancelled if it is a receive that has not
// begun to arrive, else it is given some time to end. Where it does not, MPI may use its memory whenever it
// is called: from then on every communication of this process throws.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/shared_message.h"

namespace transxssm {

// Memory of other processes in which messages lie, mapped once.
using MappedMessages = std::vector<std::unique_ptr<SharedMessage>>;

class MpiMessages {
 public:
  // A duplicate of MPI's world, in which nobody else's messages are. Collective, within `limit`. Messages
  // longer than max_part travel in several.
  MpiMessages(int64_t max_part, std::chrono::nanoseconds limit);
  ~MpiMessages();
  MpiMessages(const MpiMessages&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int max_tag() const { return max_tag_; }

  Transfer* send(const void* data, int64_t bytes, int rank, int tag);
  Transfer* receive(void* data, int64_t bytes, int rank, int tag);
  // Through memory of this host: what MPI carries is notice of it.
  Transfer* send(SharedMessage& message, const void* data, int64_t bytes, int rank, int tag);
  Transfer* receive(MappedMessages& mapped, void* data, int64_t bytes, int rank, int tag);

  // Moves on all that this process has under way. Whatever it waits for, ranks of other hosts may need that
  // before they can bring it. A look costs some tenths of a microsecond.
  static void drive();

 private:
  struct Handle;
  int64_t max_part_;
  int rank_ = 0, size_ = 0, max_tag_ = 0;
  std::unique_ptr<Handle> handle_;
};

}  // namespace transxssm
