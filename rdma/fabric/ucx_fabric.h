// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "rdma/fabric/fabric.h"

namespace distfuse::fabric::ucx {

[[nodiscard]] Result<std::unique_ptr<Fabric>> open_ucx();

}  // namespace distfuse::fabric::ucx
