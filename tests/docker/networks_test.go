// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// server is a container's command: a web server, told apart by what it serves.
const server = "mkdir -p /www; echo served >/www/index.html; httpd -f -p 80 -h /www"

// eventually polls: docker's commands return before the guest has followed, and a client has no event to wait for.
func eventually(t *testing.T, what string, look func() (got string, ok bool)) {
	t.Helper()
	start := time.Now()
	for deadline := start.Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got, ok := look()
		if ok {
			t.Logf("%s: after %s", what, time.Since(start).Round(10*time.Millisecond))
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still %s", what, got)
		}
	}
}

// serves waits until the container's server answers at an address, which the host reaches over a network of Docker's.
func serves(t *testing.T, what, address string) {
	t.Helper()
	c := http.Client{Timeout: 500 * time.Millisecond}
	defer c.CloseIdleConnections()
	eventually(t, what+": http://"+address, func() (string, bool) {
		r, err := c.Get("http://" + address + "/")
		if err != nil {
			return err.Error(), false
		}
		_ = r.Body.Close()
		return r.Status, r.StatusCode == http.StatusOK
	})
}

// has waits until the container's interfaces are what they should be.
func has(t *testing.T, d *daemon, name, what string, ok func(addresses string) bool) {
	t.Helper()
	eventually(t, what, func() (string, bool) {
		out, errs, _ := d.docker("exec", name, "ip", "-o", "addr")
		return out + errs, ok(out)
	})
}

func contains(s string) func(string) bool {
	return func(out string) bool { return strings.Contains(out, s) }
}

func lacks(s string) func(string) bool {
	return func(out string) bool { return !strings.Contains(out, s) }
}

// second makes a second network. The returned function removes it, and the container "web".
func second(t *testing.T, d *daemon) func() {
	t.Helper()
	d.must("network", "create", "--subnet", "10.214.0.0/24", "second")
	return func() {
		t.Helper()
		d.docker("rm", "-f", "web")
		if _, errs, code := d.docker("network", "rm", "second"); code != 0 {
			t.Errorf("docker network rm: %s", errs)
		}
	}
}

// checkNetworks connects a running container with a second network, and takes both away from it.
func checkNetworks(t *testing.T, d *daemon) {
	t.Helper()
	remove := second(t, d)
	defer remove()
	d.must("run", "-d", "--name", "web", "--runtime", "coco", image, "sh", "-c", server)
	for _, name := range []string{"eth1", "eth2"} { // so Docker counts; the place in the VM is the same
		d.must("network", "connect", "--ip", "10.214.0.9", "second", "web")
		serves(t, "connected", "10.214.0.9")
		has(t, d, "web", name+" with its address", contains(name+"    inet 10.214.0.9/24"))
		if out := d.must("exec", "web", "ip", "route"); !strings.Contains(out, "10.214.0.0/24 dev "+name) {
			t.Errorf("routes in the container:\n%s", out)
		}
		if _, errs, code := d.docker("exec", "web", "ping", "-c", "1", "-W", "5", "10.214.0.1"); code != 0 {
			t.Errorf("the container does not reach 10.214.0.1: %s", errs)
		}
		d.must("network", "disconnect", "second", "web")
		has(t, d, "web", "without "+name, lacks(name))
	}
	// The interface that the VM was started with stays in it, without an address.
	address := strings.TrimSpace(d.must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"))
	serves(t, "still connected", address)
	d.must("network", "disconnect", "bridge", "web")
	has(t, d, "web", "without an address", lacks(address))
	if out := d.must("exec", "web", "ip", "route"); out != "" {
		t.Errorf("routes in the container without a network:\n%s", out)
	}
	d.must("network", "connect", "--ip", "10.214.0.9", "second", "web")
	serves(t, "connected again", "10.214.0.9")
}

// checkNoNetworkAtFirst connects a container that was started without a network.
func checkNoNetworkAtFirst(t *testing.T, d *daemon) {
	t.Helper()
	remove := second(t, d)
	defer remove()
	d.must("run", "-d", "--name", "web", "--network", "none", "--runtime", "coco", image, "sh", "-c", server)
	has(t, d, "web", "no network", func(out string) bool {
		return strings.Contains(out, "lo") && !strings.Contains(out, "eth")
	})
	d.must("network", "disconnect", "none", "web")
	d.must("network", "connect", "--ip", "10.214.0.9", "second", "web")
	serves(t, "connected", "10.214.0.9")
	has(t, d, "web", "the address", contains("inet 10.214.0.9/24"))
}
