// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestSplit(t *testing.T) {
	network, shared, err := Split(map[string]string{
		"net.core.somaxconn": "1", "kernel.shmmax": "2",
		"fs.mqueue.msg_max": "3",
	})
	if err != nil || len(network) != 1 || len(shared) != 2 || shared["kernel/shmmax"] != "2" ||
		shared["fs/mqueue/msg_max"] != "3" {
		t.Errorf("Split = %v, %v, %v", network, shared, err)
	}
	for _, k := range []string{"kernel.core_pattern", "vm.swappiness", "kernel/../vm/x", "/kernel/shmmax"} {
		if _, _, err := Split(map[string]string{k: "1"}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Split(%s) = %v, want invalid argument", k, err)
		}
	}
}

func TestFile(t *testing.T) {
	for in, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/conf/eth0.1/x": "net/ipv4/conf/eth0.1/x",
		"kernel.x": "", "net..x": "", "net/../kernel/x": "", "net.": "",
	} {
		if got, err := File(in); got != want || (err == nil) != (want != "") {
			t.Errorf("File(%q) = %q, %v", in, got, err)
		}
	}
}
