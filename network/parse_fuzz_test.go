// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/rtnl"
	"github.com/coco-shim/coco/internal/worktest"
)

func FuzzKernelMessages(f *testing.F) {
	f.Add(append(linkHeader(3, 0, 0), rtnl.String(unix.IFLA_IFNAME, "eth0")...))
	f.Add(append(header(unix.AF_INET, unix.SizeofRtMsg), rtnl.Nested(unix.RTA_MULTIPATH, make([]byte, 8))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		parseLink(b)
		parseAddr(b)
		parseRoute(b)
		parseRule(b)
		parseNeighbour(b)
		parseTC(b)
	})
}
