// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "rdma/fabric/fabric.h"
#include "rdma/fabric/verbs_table.h"

namespace distfuse::fabric::verbs {

/// `table` must outlive the fabric. ENODEV: no such device.
[[nodiscard]] Result<std::unique_ptr<Fabric>> open_verbs(const Options& options,
                                                         const VerbsTable& table);

}  // namespace distfuse::fabric::verbs
