// CRC-32C (Castagnoli; polynomial 0x1EDC6F41 reflected, initial value and final xor 0xFFFFFFFF): the checksum
// of checkpoint chunks and of TensorBoard records. Finds accidents, not tampering.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace transxssm {

// Checksum of what `crc` covers followed by `bytes`; 0 is the checksum of nothing. Uses the SSE4.2
// instruction in three interleaved lanes where the processor has it, else tables.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t crc = 0);
uint32_t crc32c(std::string_view text, uint32_t crc = 0);

// The portable version, eight tables at a time.
uint32_t crc32c_portable(std::span<const std::byte> bytes, uint32_t crc = 0);

// Checksum of A followed by B from those of A and of B, which has `bytes_b` bytes.
uint32_t crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b);

}  // namespace transxssm
