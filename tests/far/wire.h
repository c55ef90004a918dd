// SPDX-License-Identifier: Apache-2.0
// The messages between a test and its hand on another guest: POSIX calls and their answers, one at a time.
//
// Parties: a test process (tests/far/hand.h), which sends a call and waits for its answer; the hand (tests/far/main.cc), which makes
// the call and answers, until its input ends.
//
// A message: length of the rest (u32), then, little-endian and without gaps,
//   call    →  kind (u8), 4 numbers (i64), 3 texts (u32 length, bytes): two paths or names, and the data
//   answer  ←  result (i64), errno (i32), 1 text: the data
// What the numbers and texts are stands with each kind. Structures (stat, flock) go as they lie in memory: both ends are one build.
//
// Limits: data of one call or answer kMaxData. A call's message kMaxCall, because the agents between the two hold no more than 1 MiB
// that a job has not taken: longer data goes ahead in `data` calls, each answered, so that write() is one call there as here.
// Who breaks the format loses the connection; the test's calls are EHOSTDOWN from then on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace distfuse::tests::far {

inline constexpr std::size_t kMaxData = 64 << 20;
inline constexpr std::size_t kMaxCall = 256 << 10;

enum class Kind : std::uint8_t {
  data,  ///< Data of the next call, which follows what is there.
  // Of a path; `second` is another path, a link's target, or the name of an attribute.
  open,      ///< flags, mode
  truncate,  ///< size
  stat_file,
  stat_link,
  mkdir,  ///< mode
  rmdir,
  unlink,
  symlink,  ///< `first` is the target
  link,
  rename,    ///< flags
  chmod,     ///< mode
  getxattr,  ///< room
  setxattr,  ///< flags
  removexattr,
  list,  ///< Data: the names, each ended by a zero byte.
  // Of a descriptor, the first number.
  close,
  read,  ///< room
  write,
  pread,      ///< room, offset
  pwrite,     ///< offset
  ftruncate,  ///< size
  fallocate,  ///< mode, offset, length
  lseek,      ///< offset, whence
  fsync,
  stat_descriptor,
  fcntl,  ///< command; data both ways: struct flock
  flock,  ///< operation
  copy,   ///< to descriptor, length; data: the two offsets (i64)
  map,    ///< length; the result names the mapping
  // Of a mapping, the first number.
  load,        ///< offset, length
  store,       ///< offset
  load_word,   ///< offset; the result is the word
  store_word,  ///< offset, value
  unmap,
};

struct Call {
  Kind kind = Kind::data;
  std::array<std::int64_t, 4> numbers{};
  std::string first;
  std::string second;
  std::string data;
};

struct Answer {
  std::int64_t result = -1;
  std::int32_t error = 0;
  std::string data;
};

/// Over a socket. False: the other end is gone.
[[nodiscard]] bool send_call(int fd, const Call& call);
/// False: the other end is gone.
[[nodiscard]] bool send_answer(int fd, const Answer& answer);
/// None: the other end is gone, or does not keep to the format.
[[nodiscard]] std::optional<Call> receive_call(int fd);
[[nodiscard]] std::optional<Answer> receive_answer(int fd);

}  // namespace distfuse::tests::far
