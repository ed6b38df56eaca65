// Numbers as people read them, one way for the whole program.
#pragma once

#include <cstdint>
#include <string>

namespace transxssm {

std::string format_bytes(double bytes);        // "512 B", "1.2 MB", "3.4 GB": powers of ten
std::string format_count(int64_t count);       // "1,234,567"
std::string format_short_count(double count);  // "1234", "56.1k", "6.1M", "1.3B"
std::string format_duration(
    double seconds);  // "9.5s", "42s", "1m 05s", "2h 07m", "3d 01h"; "?" where unknown

}  // namespace transxssm
