// Standard input, output and error of this process, which may be closed, full, or lose their reader at any
// time.
#pragma once

namespace transxssm {

// First thing in main. Opens those that are closed, so that no file of ours gets their number and a message
// lands in its midst; and ignores SIGPIPE and SIGXFSZ: a reader that goes away, or a log at the limit of
// ulimit -f, must not end a run.
void prepare_standard_streams();

// After output that somebody waits for: writes out what is buffered. Throws an Error where any of it is lost:
// exit code 5, or, where its reader went away (`| head`), an Error of code 141, as if ended by SIGPIPE, with
// an empty message.
void flush_standard_output();
// The same for a failure that is known: of a print to standard output.
[[noreturn]] void throw_lost_output(int error);

}  // namespace transxssm
