// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/workload.h"

#include <array>
#include <utility>

namespace distfuse::scale {
namespace {

constexpr std::array kNames = {
    std::pair{Workload::private_files, std::string_view("private")},
    std::pair{Workload::directory, std::string_view("directory")},
    std::pair{Workload::directory_intent, std::string_view("directory-intent")},
    std::pair{Workload::hot_write, std::string_view("hot-write")},
    std::pair{Workload::hot_extents, std::string_view("hot-extents")},
    std::pair{Workload::hot_intent, std::string_view("hot-intent")},
    std::pair{Workload::hot_read, std::string_view("hot-read")},
};

constexpr df_u64 kShared = 1;  // the inode that all share
constexpr std::uint32_t kExtentsPerClient = 4;
// While a lock is held: a look-up in memory; a request to the meta target; a page copied; a request to a data target.
constexpr double kLookUpNs = 500, kCreateNs = 20'000, kPageNs = 1'000, kUncachedNs = 20'000;

}  // namespace

std::optional<Workload> workload_of(std::string_view name) {
  for (const auto& [workload, text] : kNames)
    if (text == name) return workload;
  return {};
}

std::string_view name_of(Workload workload) {
  for (const auto& [known, text] : kNames)
    if (known == workload) return text;
  return "?";
}

std::uint64_t WorkloadSource::keys() const {
  switch (workload_) {
    case Workload::private_files:
      return std::uint64_t{clients_} * options_.private_files;
    case Workload::hot_extents:
      return std::uint64_t{clients_} * kExtentsPerClient;
    default:
      return 1;
  }
}

std::uint32_t WorkloadSource::warm_acquires() const {
  return workload_ == Workload::private_files ? options_.private_files + 1 : 2;
}

Operation WorkloadSource::next(std::uint32_t client, Random& random) {
  const double think = options_.think_ns;
  const auto turn = turns_[client]++;
  switch (workload_) {
    case Workload::private_files: {
      const df_u64 file = turn % options_.private_files;
      return {df_key_inode(2 + client + file * clients_), DF_X, kPageNs, think, true};
    }
    case Workload::directory:
    case Workload::directory_intent: {
      const bool creates = random.unit() < options_.create_share;
      if (workload_ == Workload::directory)
        return {df_key_inode(kShared), creates ? df_u32{DF_X} : df_u32{DF_S},
                creates ? kCreateNs : kLookUpNs, think, false};
      return {df_key_inode(kShared), creates ? df_u32{DF_IX} : df_u32{DF_IS}, kCreateNs, think,
              true};
    }
    case Workload::hot_write:
      return {df_key_inode(kShared), DF_X, kPageNs, think, false};
    case Workload::hot_extents: {
      const auto extents = std::uint64_t{clients_} * kExtentsPerClient;
      return {df_key_extent(kShared, static_cast<df_u32>(random.below(extents))), DF_X, kPageNs,
              think, false};
    }
    case Workload::hot_intent:
      return {df_key_inode(kShared), DF_IX, kUncachedNs, think, true};
    case Workload::hot_read:
      break;
  }
  if (client == 0) return {df_key_inode(kShared), DF_X, kPageNs, options_.writer_period_ns, false};
  return {df_key_inode(kShared), DF_S, kPageNs, think, false};
}

}  // namespace distfuse::scale
