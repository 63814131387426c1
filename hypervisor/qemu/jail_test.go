// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/coco-shim/coco/hypervisor/jail"
)

// QEMU is asked for what a guest that has broken out of its VM would do.
func TestLandlockHoldsInARunningQEMU(t *testing.T) {
	if err := jail.LandlockLacks(jail.LandlockVersion()); err != nil {
		t.Skip(err)
	}
	vm, _ := boot(t, vmSpec(t))
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	name := fmt.Sprintf("coco-qemu-%d", os.Getpid())
	abstract, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	inet := func(port string) map[string]any {
		return map[string]any{"type": "inet", "data": map[string]any{"host": "127.0.0.1", "port": port}}
	}
	_, port, err := net.SplitHostPort(tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, want string
		socket     map[string]any
	}{
		{"listen on TCP", "Permission denied", map[string]any{"addr": inet("0"), "server": true, "wait": false}},
		{"connect by TCP", "Permission denied", map[string]any{"addr": inet(port), "server": false}},
		{"connect to an abstract socket", "Operation not permitted", map[string]any{
			"addr":   map[string]any{"type": "unix", "data": map[string]any{"path": name, "abstract": true, "tight": true}},
			"server": false,
		}},
	} {
		args := map[string]any{"id": "escape", "backend": map[string]any{"type": "socket", "data": tt.socket}}
		if err := vm.qmp.Call(t.Context(), "chardev-add", args, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
}
