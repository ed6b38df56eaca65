// report.html: a run on one page that opens anywhere, offline, and loads nothing.
#pragma once

#include <string>

#include "runtime/chart.h"
#include "runtime/metrics.h"

namespace transxssm {

// Training and validation loss, and nothing else. The final validation covers other rows than the curve and
// is a point of its own.
Chart loss_chart(const MetricsHistory& history);
// The validation loss of each source of a blend.
Chart source_chart(const MetricsHistory& history);

// The page: facts of the run, then loss, speed, learning rate and gradient norm over the steps.
std::string report_html(const MetricsHistory& history, const std::string& title);

// Reads <run_directory>/metrics.jsonl; writes report.html and loss.svg beside it. A disk that refuses them
// costs a warning; a metrics file that cannot be read throws DataError.
void write_report(const std::string& run_directory);

}  // namespace transxssm
