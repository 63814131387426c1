// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package nic_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/netns"
	"github.com/coco-shim/coco/virtcontainers/nic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A pod's author learns from the log what of a real namespace the guest does not get.
func TestAttachNamesWhatTheGuestDoesNotGet(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns, testvm.Tap)
	path := filepath.Join(t.TempDir(), "pod")
	if err := netns.New(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Delete(path); err != nil {
			t.Error(err)
		}
	})
	err := netns.In(path, func() error {
		return exec.CommandContext(t.Context(), "sh", "-ec", `
			ip link add eth0 type veth peer name peer0
			ip link set eth0 up
			ip address add 10.9.0.2/24 dev eth0
			ip address add fd09::7/64 dev eth0 nodad valid_lft 3600 preferred_lft 3600
			ip -6 route add fd0a::/64 dev eth0 proto ra metric 77`).Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	n := nic.NewNamespaces(configs.Default().Network)
	a, err := n.Attach(t.Context(), path, false, func([]network.Redirect) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, c := range a.NICs {
			if err := c.CloseFiles(); err != nil {
				t.Error(err)
			}
		}
		if err := a.Detach(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	want := []network.Skipped{
		{What: "link peer0", Why: "is down"},
		{
			What: "address fd09::7/64 of eth0",
			Why:  "was learnt from a router and has a lifetime; the guest learns its own",
		},
		{What: "route fd0a::/64", Why: "was learnt from a router; the guest learns its own"},
	}
	if d := cmp.Diff(want, a.Skipped); d != "" {
		t.Error("Attach skips (-want +got):\n" + d)
	}
	if len(a.NICs) != 1 || len(a.Guest.Interfaces) != 1 || a.Guest.Interfaces[0].GetName() != "eth0" {
		t.Errorf("the guest gets %d interfaces, %v", len(a.NICs), a.Guest)
	}
}
