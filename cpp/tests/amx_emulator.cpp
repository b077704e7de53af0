// SPDX-License-Identifier: MIT
// The AMX emulator: decode the instruction that raised SIGILL, execute it, continue behind it.
//
// Written after Intel's Software Developer's Manual (SDM): volume 2 for encodings, operations and
// the exception classes AMX-E1 to AMX-E6, volume 1 chapter "Programming with AMX" for the tiles.
#include "tests/amx_emulator.h"

#if !defined(__linux__) || !defined(__x86_64__)
#error "CPUATTN_EMULATE_AMX needs Linux on x86-64"
#endif

#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace cpuattn {
namespace {

// Palette 1, the only one there is.
constexpr int kNumTiles = 8, kMaxRows = 16, kMaxColsb = 64, kLanes = 16;

// The operand of LDTILECFG and STTILECFG (SDM, LDTILECFG, "Memory Area Layout").
struct TileConfig {
  uint8_t palette;  // 0: tiles are not configured
  uint8_t start_row;
  uint8_t reserved_2[14];
  uint16_t colsb[kNumTiles];  // bytes of a row
  uint8_t reserved_32[16];
  uint8_t rows[kNumTiles];
  uint8_t reserved_56[8];
};
static_assert(sizeof(TileConfig) == 64);

struct alignas(64) TileFile {
  uint8_t data[kNumTiles][kMaxRows][kMaxColsb];  // zero outside of the configured shapes
  TileConfig config;
};

// Not initial-exec: 8 KiB are more than glibc keeps for modules that are loaded later. That the
// first access of a thread may allocate is safe in this handler, because an AMX instruction of the
// thread itself raised the signal: it never interrupts malloc.
constinit thread_local TileFile tiles{};

// Says what hardware would fault on. A kernel that gets here has a bug.
[[noreturn]] void refuse(const char* name, std::initializer_list<unsigned> operands,
                         const char* rule) {
  std::fprintf(stderr, "AMX emulator: %s", name);
  const char* separator = " ";
  for (const unsigned tile : operands) {
    std::fprintf(stderr, "%stmm%u (%u rows x %u bytes)", separator, tile, tiles.config.rows[tile],
                 tiles.config.colsb[tile]);
    separator = ", ";
  }
  std::fprintf(stderr, ": %s\n", rule);
  std::abort();
}

void require_configured(const char* name, std::initializer_list<unsigned> operands) {
  if (tiles.config.palette == 0) refuse(name, operands, "no tile is configured");
  for (const unsigned tile : operands) {
    if (tiles.config.rows[tile] == 0) refuse(name, operands, "a tile is not configured");
  }
}

void require_whole_elements(const char* name, std::initializer_list<unsigned> operands) {
  for (const unsigned tile : operands) {
    if (tiles.config.colsb[tile] % 4 != 0) {
      refuse(name, operands, "the bytes of a row must be a multiple of 4");
    }
  }
}

// --- Execution ---------------------------------------------------------------------------------

void load_config(const uint8_t* source) {
  constexpr const char* kName = "ldtilecfg";
  constexpr uint8_t kZero[16] = {};
  TileConfig config;
  std::memcpy(&config, source, sizeof config);
  if (config.palette == 0) {
    tiles = {};
    return;
  }
  if (config.palette != 1) refuse(kName, {}, "the palette must be 0 or 1");
  if (config.start_row != 0) refuse(kName, {}, "start_row must be 0 (else not emulated)");
  if (std::memcmp(config.reserved_2, kZero, sizeof config.reserved_2) != 0 ||
      std::memcmp(config.reserved_32, kZero, sizeof config.reserved_32) != 0 ||
      std::memcmp(config.reserved_56, kZero, sizeof config.reserved_56) != 0) {
    refuse(kName, {}, "reserved bytes must be 0");
  }
  tiles = {};
  tiles.config = config;
  for (unsigned tile = 0; tile < kNumTiles; ++tile) {
    const unsigned rows = config.rows[tile], colsb = config.colsb[tile];
    if (rows > kMaxRows || colsb > kMaxColsb) refuse(kName, {tile}, "at most 16 rows x 64 bytes");
    if ((rows == 0) != (colsb == 0)) refuse(kName, {tile}, "rows and bytes: both 0 or neither");
  }
}

void load_tile(const char* name, unsigned tile, uint64_t address, uint64_t stride) {
  require_configured(name, {tile});
  require_whole_elements(name, {tile});
  for (unsigned row = 0; row < tiles.config.rows[tile]; ++row, address += stride) {
    const void* source = reinterpret_cast<const void*>(address);
    std::memcpy(tiles.data[tile][row], source, tiles.config.colsb[tile]);
  }
}

void store_tile(unsigned tile, uint64_t address, uint64_t stride) {
  require_configured("tilestored", {tile});
  require_whole_elements("tilestored", {tile});
  for (unsigned row = 0; row < tiles.config.rows[tile]; ++row, address += stride) {
    void* target = reinterpret_cast<void*>(address);
    std::memcpy(target, tiles.data[tile][row], tiles.config.colsb[tile]);
  }
}

void zero_tile(unsigned tile) {
  require_configured("tilezero", {tile});
  std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

float low_bf16(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float high_bf16(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

// C += A B, as the "Operation" of TDPBF16PS in the SDM has it: the even and the odd bfloat16 of the
// pairs are summed apart, each from zero in the order of k, by "FP32 FMA with DAZ=FTZ=1, RNE
// rounding"; then even + odd is rounded and added to C. Bochs (cpu/avx/amx.cc) reads it alike.
__attribute__((target("avx512f"), noinline)) void multiply_tiles(unsigned c, unsigned a,
                                                                 unsigned b) {
  constexpr const char* kName = "tdpbf16ps";
  const TileConfig& config = tiles.config;
  require_configured(kName, {c, a, b});
  require_whole_elements(kName, {c, a, b});
  if (c == a || c == b || a == b) refuse(kName, {c, a, b}, "the tiles must differ");
  if (config.rows[c] != config.rows[a] || config.colsb[c] != config.colsb[b] ||
      config.colsb[a] != 4 * config.rows[b]) {
    refuse(kName, {c, a, b}, "(m x 4n) += (m x 4k) (k x 4n) is needed");
  }

  for (int m = 0; m < config.rows[c]; ++m) {
    float even[kLanes] = {}, odd[kLanes] = {}, sum[kLanes];
    for (int k = 0; k < config.rows[b]; ++k) {
      uint32_t a_pair, b_pair[kLanes];
      std::memcpy(&a_pair, &tiles.data[a][m][4 * k], sizeof a_pair);
      std::memcpy(b_pair, tiles.data[b][k], sizeof b_pair);
      for (int n = 0; n < kLanes; ++n) {
        even[n] = __builtin_fmaf(low_bf16(a_pair), low_bf16(b_pair[n]), even[n]);
        odd[n] = __builtin_fmaf(high_bf16(a_pair), high_bf16(b_pair[n]), odd[n]);
      }
    }
    std::memcpy(sum, tiles.data[c][m], sizeof sum);
    for (int n = 0; n < kLanes; ++n) sum[n] += even[n] + odd[n];
    std::memcpy(tiles.data[c][m], sum, config.colsb[c]);
  }
}

// --- Decoding ----------------------------------------------------------------------------------

// The opcode in map 0F 38, and the prefix as VEX.pp has it.
enum Prefix : unsigned { kNone, k66, kF3, kF2 };
constexpr unsigned kind(unsigned opcode, unsigned prefix) { return opcode << 2 | prefix; }

struct Instruction {
  unsigned kind;
  unsigned reg, rm, vvvv;  // ModRM.reg, ModRM.rm, VEX.vvvv; rm means a register if not `memory`
  bool memory, sib;
  uint64_t address, stride;  // base + displacement, index << scale
  const uint8_t* end;
};

// The 64-bit addressing forms (SDM volume 2, sections 2.1.5 and 2.2.1). `p` is behind ModRM, `vex`
// is the byte with the inverted X and B. Segment bases are not looked at.
const uint8_t* decode_memory(const uint8_t* p, unsigned modrm, unsigned vex,
                             const greg_t* registers, Instruction& instruction) {
  constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  const auto value = [&](unsigned n) { return static_cast<uint64_t>(registers[kOrder[n]]); };
  const unsigned mod = modrm >> 6;
  unsigned base = modrm & 7;
  instruction.sib = base == 4;
  if (instruction.sib) {
    const unsigned sib = *p++;
    const unsigned index = (sib >> 3 & 7) | (~vex >> 3 & 8);
    if (index != 4) instruction.stride = value(index) << (sib >> 6);
    base = sib & 7;
  }
  const bool no_base = mod == 0 && base == 5;
  int64_t displacement = 0;
  if (mod == 1) {
    displacement = static_cast<int8_t>(*p++);
  } else if (mod == 2 || no_base) {
    int32_t disp32;
    std::memcpy(&disp32, p, sizeof disp32);
    displacement = disp32;
    p += sizeof disp32;
  }
  instruction.address = static_cast<uint64_t>(displacement);
  if (!no_base) {
    instruction.address += value(base | (~vex >> 2 & 8));
  } else if (!instruction.sib) {
    instruction.address += reinterpret_cast<uint64_t>(p);  // RIP; no AMX instruction has more bytes
  }
  return p;
}

// VEX.128.W0 of map 0F 38, which takes the three-byte form. False: something else.
bool decode(const uint8_t* p, const greg_t* registers, Instruction& instruction) {
  while (*p == 0x2e || *p == 0x3e) ++p;  // CS and DS, with which assemblers pad
  if (p[0] != 0xc4) return false;
  const unsigned vex1 = p[1], vex2 = p[2];  // R X B mmmmm, W vvvv L pp; R, X, B, vvvv inverted
  if ((vex1 & 0x1f) != 2 || (vex2 & 0x84) != 0) return false;
  const unsigned modrm = p[4];
  instruction.kind = kind(p[3], vex2 & 3);
  instruction.reg = (modrm >> 3 & 7) | (~vex1 >> 4 & 8);
  instruction.rm = (modrm & 7) | (~vex1 >> 2 & 8);
  instruction.vvvv = ~vex2 >> 3 & 15;
  instruction.memory = modrm < 0xc0;
  instruction.end = p + 5;
  if (instruction.memory) {
    instruction.end = decode_memory(p + 5, modrm, vex1, registers, instruction);
  }
  return true;
}

// False: not an instruction of AMX-TILE or AMX-BF16.
bool execute(const Instruction& in) {
  const bool no_vvvv = in.vvvv == 0;
  const bool config = in.memory && in.reg == 0 && no_vvvv;
  const bool rows = in.memory && in.sib && in.reg < kNumTiles && no_vvvv;
  const bool registers = !in.memory && in.reg < kNumTiles && in.rm < kNumTiles;
  const uint64_t operand = in.address + in.stride;  // of 64 bytes, not of rows
  switch (in.kind) {
    case kind(0x49, kNone):
      if (config) {
        load_config(reinterpret_cast<const uint8_t*>(operand));
      } else if (registers && in.reg == 0 && in.rm == 0 && no_vvvv) {
        tiles = {};  // tilerelease
      } else {
        return false;
      }
      return true;
    case kind(0x49, k66):
      if (config) std::memcpy(reinterpret_cast<void*>(operand), &tiles.config, sizeof tiles.config);
      return config;
    case kind(0x49, kF2):
      if (!registers || in.rm != 0 || !no_vvvv) return false;
      zero_tile(in.reg);
      return true;
    case kind(0x4b, kF2):
      if (rows) load_tile("tileloadd", in.reg, in.address, in.stride);
      return rows;
    case kind(0x4b, k66):
      if (rows) load_tile("tileloaddt1", in.reg, in.address, in.stride);
      return rows;
    case kind(0x4b, kF3):
      if (rows) store_tile(in.reg, in.address, in.stride);
      return rows;
    case kind(0x5c, kF3):
      if (!registers || in.vvvv >= kNumTiles) return false;
      multiply_tiles(in.reg, in.rm, in.vvvv);
      return true;
    default:
      return false;
  }
}

// --- The signal --------------------------------------------------------------------------------

struct sigaction previous;

// Executes the instruction at RIP and goes behind it. False: it is not one of AMX.
bool step(greg_t* registers) {
  Instruction instruction{};
  const auto* code = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
  if (!decode(code, registers, instruction) || !execute(instruction)) return false;
  registers[REG_RIP] = reinterpret_cast<greg_t>(instruction.end);
  return true;
}

void on_illegal_instruction(int, siginfo_t* info, void* context) {
  // Exceptions masked, to nearest even, denormals are zero, results flush to zero: the modes of
  // TDPBF16PS, whatever MXCSR says. The kernel puts the thread's MXCSR back when this returns.
  _mm_setcsr(0x9fc0);
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const bool trapped = info->si_code > 0;  // not sent by kill() and the like
  if (trapped && step(registers)) {
    while (step(registers)) continue;  // AMX comes in rows, and a trap costs more than ten of them
    return;
  }
  sigaction(SIGILL, &previous, nullptr);
  if (!trapped) raise(SIGILL);  // else the instruction runs again, and raises it again
}

}  // namespace

void install_amx_emulator() {
  static const int installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO;
    return sigaction(SIGILL, &action, &previous);
  }();
  static_cast<void>(installed);
}

}  // namespace cpuattn
