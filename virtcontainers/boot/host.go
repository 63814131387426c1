// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"github.com/coco-shim/coco/virtcontainers/foresight"
	"github.com/coco-shim/coco/virtcontainers/hostapi"
	"github.com/coco-shim/coco/virtcontainers/life"
)

// What a boot needs of other packages, under the names that its callers have for it.
type (
	Host       = hostapi.Host
	Localhost  = hostapi.Localhost
	Judge      = hostapi.Judge
	FileServer = hostapi.FileServer
	Files      = hostapi.Files
	Network    = hostapi.Network
	Layers     = hostapi.Layers
	TPMServer  = hostapi.TPMServer
	Names      = hostapi.Names
	Foresight  = foresight.Foresight
	Life       = life.Life
)
