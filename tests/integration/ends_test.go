// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/tests/harness"
)

// awaitEnd waits until a process is gone.
func awaitEnd(t *testing.T, pidfd int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			t.Fatal(err)
		case n == 0:
			t.Fatal("it runs on")
		default:
			return
		}
	}
}

// TestASignalForAllAndTheEndOfAVM: each process of a container gets a signal that is for all; the end of the container,
// which nobody removes, is the end of its VM, and what a client asks then is answered as under runc.
func TestASignalForAllAndTheEndOfAVM(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	const script = `(trap 'touch /two' USR1; touch /ready; while :; do sleep 1; done) & trap 'touch /one' USR1; while :; do sleep 1; done`
	for _, runtime := range []string{harness.RuncRuntime, harness.Runtime} {
		id := detached(t, d, runtime, "sh", "-c", script)
		inside := func(name, script string) {
			t.Helper()
			must(t, d, "task", "exec", "--exec-id", name, id, "timeout", "30", "sh", "-c", script)
		}
		inside("ready", "until [ -e /ready ]; do sleep 0.1; done")
		must(t, d, "task", "kill", "-s", "SIGUSR1", "-a", id)
		inside("got", "until [ -e /one ] && [ -e /two ]; do sleep 0.1; done")

		var pidfd int
		if runtime == harness.Runtime {
			_, vmm, err := harness.Pids(id)
			if err != nil {
				t.Fatal(err)
			}
			if pidfd, err = unix.PidfdOpen(vmm, 0); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pidfd)
		}
		must(t, d, "task", "kill", "-s", "SIGKILL", "-a", id)
		if runtime == harness.Runtime {
			awaitEnd(t, pidfd)
		}
		within(t, 10*time.Second, func() error { // a client has no event to wait for
			if s := statusOf(t, d, id); s != "STOPPED" {
				return errors.New(s)
			}
			return nil
		})
		for _, c := range [][]string{
			{"task", "exec", "--exec-id", "late", id, "true"},
			{"task", "kill", id},
			{"task", "metrics", id},
			{"task", "pause", id},
		} {
			r := ctr(t, d, c...)
			// answers as long as its group is there, on a host with cgroup v1
			if c[1] == "metrics" && runtime == harness.RuncRuntime {
				continue
			}
			if r.Code == 0 || strings.Contains(r.Stderr, "connection") {
				t.Errorf("%s: ctr %s: exit %d, %s", runtime, strings.Join(c, " "), r.Code, r.Stderr)
			} else {
				t.Logf("%s: ctr %s: %s", runtime, strings.Join(c[:2], " "), strings.TrimSpace(r.Stderr))
			}
		}
		if code := exitCode(t, ctr(t, d, "task", "delete", id)); code != 137 {
			t.Errorf("%s: exit status %d, want 137", runtime, code)
		}
	}
}

// TestPolicyRoutingIsTheContainers makes a network namespace as plug-ins with source routing do.
func TestPolicyRoutingIsTheContainers(t *testing.T) {
	d := daemon(t, primary)
	const ns, peer = "cocoitpr", "cocoitpr0"
	setUp := `ip netns add NS; ip link add PEER type veth peer name eth0 netns NS; ip link set PEER up; ip addr add 10.233.5.1/24 dev PEER
ip -n NS link set eth0 up; ip -n NS addr add 10.233.5.2/24 dev eth0; ip -n NS addr add 10.233.5.3/24 dev eth0
ip -n NS route add default via 10.233.5.1 metric 50; ip -n NS route add default via 10.233.5.9 metric 200; ip -n NS route add blackhole 10.60.0.0/16
ip -n NS rule add from 10.233.5.3 table 100; ip -n NS route add default via 10.233.5.1 table 100; ip -n NS route add prohibit 10.61.0.0/16 table 100`
	if out, err := exec.Command("sh", "-ec",
		strings.NewReplacer("NS", ns, "PEER", peer).Replace(setUp)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		// after the test, without its context
		if out, err := exec.Command("sh", "-c", "ip netns del "+ns+"; ip link del "+peer+
			" 2>/dev/null || true").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	noLeaks(t)
	see := func(runtime string) string {
		return must(t, d, "run", "--rm", "--runtime", runtime, "--with-ns", "network:/run/netns/"+ns, harness.Image,
			newID(t), "sh", "-c",
			"ip rule; ip route show table all | grep -v 'table local\\|ff00::\\|fe80::' | sed 's/ proto [a-z0-9]*//; s/  */ "+
				"/g; s/ $//' | sort; ping -c1 -W2 10.60.0.1 2>&1 | tail -1; ping -c1 -W5 -I 10.233.5.3 10.233.5.1 | grep received")
	}
	want, got := see(harness.RuncRuntime), see(harness.Runtime)
	if !strings.Contains(want, "lookup 100") || !strings.Contains(want, "blackhole") ||
		!strings.Contains(want, "1 packets received") {
		t.Fatalf("runc shows no policy routing:\n%s", want)
	}
	if got != want {
		t.Errorf("coco:\n%s\nrunc:\n%s", got, want)
	}
}
