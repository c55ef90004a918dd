// SPDX-License-Identifier: Apache-2.0
#include "storaged/boot.h"

#include <cstdlib>
#include <fstream>
#include <string>

namespace distfuse::storaged {

Result<std::uint64_t> boot_number() {
  constexpr const char* kBootId = "/proc/sys/kernel/random/boot_id";
  std::string id;
  if (const char* given = std::getenv("DISTFUSE_BOOT_ID"); given != nullptr) id = given;
  if (id.empty()) std::getline(std::ifstream(kBootId), id);
  if (id.empty()) return Error{ENOENT, std::string(kBootId) + " cannot be read: is /proc mounted?"};
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : id) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash != 0 ? hash : 1;
}

}  // namespace distfuse::storaged
