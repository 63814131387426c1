// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package deptest

import (
	"strings"
	"testing"
)

// onlyIn says which trees may import a module; keys are import path prefixes.
var onlyIn = map[string][]string{
	"github.com/vishvananda/netlink":              {"network", "agent/netcfg", "agent/boot", "internal/netdump", "tests"},
	"github.com/containerd/containerd/api":        {"tests"},
	"github.com/open-policy-agent/opa":            {"policy"},
	"github.com/opencontainers/runc/libcontainer": {},
	"github.com/getkin/kin-openapi":               {"hypervisor/clh/clhtest"},
	"github.com/google/go-containerregistry":      {"image/resolve", "cmd/coco", "internal/testimage", "tests"},
	"k8s.io/api":                                  {"policy/gen"},
}

func TestLibrariesStayWhereTheyBelong(t *testing.T) {
	for _, p := range List(t, Module+"/...") {
		from := strings.TrimPrefix(p.ImportPath, Module+"/")
		for _, imp := range p.Imports {
			for lib, trees := range onlyIn {
				if imp != lib && !strings.HasPrefix(imp, lib+"/") {
					continue
				}
				ok := false
				for _, tree := range trees {
					ok = ok || match(tree+"/...", from)
				}
				if !ok {
					t.Errorf("%s imports %s; only %v may", from, imp, trees)
				}
			}
		}
	}
}
