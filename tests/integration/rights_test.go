// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/tests/harness"
)

// tools copies programs of the host with all that they load into a directory, and returns it.
func tools(t *testing.T, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil {
			absent(t, err.Error())
		}
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			t.Fatalf("ldd %s: %v", path, err)
		}
		copyFile(t, path, filepath.Join(dir, p))
		for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(string(out), -1) {
			copyFile(t, lib, filepath.Join(dir, filepath.Base(lib)))
		}
	}
	return dir
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// asked is a script of lines `NAME: COMMAND`; each is run and its name printed with `ok` or what the command said.
func asked(lines string) (script string, names []string) {
	for line := range strings.SplitSeq(strings.TrimSpace(lines), "\n") {
		name, command, _ := strings.Cut(strings.TrimSpace(line), ": ")
		names = append(names, name)
		script += "if out=$( (" + command + ") 2>&1 ); then echo '" + name + ": ok'; else echo '" + name + ": '$out; fi\n"
	}
	return script, names
}

const tool = "T() { p=$1; shift; /tools/ld-linux-x86-64.so.2 --library-path /tools --argv0 $p /tools/${P:-$p} " +
	"\"$@\"; }\n" +
	"export XTABLES_LIBDIR=/xtables; nft() { P=xtables-nft-multi T \"$@\"; }; legacy() { P=xtables-legacy-multi T " +
	"\"$@\"; }\n"

// uses is what a VPN beside an application (tun), Docker in a pod (veth, bridge, NAT, overlay, loop) and Istio's init
// container (redirection by owner, REDIRECT) want of the guest.
const uses = `
tun: : <>/dev/net/tun && [ -e /sys/class/misc/tun ]
veth: ip link add v0 type veth peer name v1
bridge: ip link add br0 type bridge && T ip link set v0 master br0
dummy: ip link add d0 type dummy
macvlan: T ip link add m0 link d0 type macvlan
vlan: T ip link add d0.5 link d0 type vlan id 5
vxlan: T ip link add x0 type vxlan id 1 dstport 4789 dev d0
wireguard: T ip link add w0 type wireguard
loop: dd if=/dev/zero of=/f bs=1k count=64 && losetup /dev/loop0 /f && head -c 1 /dev/loop0
overlay: mkdir -p /m /mnt && mount -t tmpfs t /m && mkdir /m/u /m/w /m/l && mount -t overlay o -olowerdir=/m/l,upperdir=/m/u,workdir=/m/w /mnt
masquerade: nft iptables -t nat -A POSTROUTING -s 10.0.0.0/8 ! -o br0 -j MASQUERADE
redirect: nft iptables -t nat -A OUTPUT -p tcp -m owner ! --uid-owner 1337 -j REDIRECT --to-ports 15001
conntrack: nft iptables -A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment x -j ACCEPT
addrtype: nft iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j ACCEPT
tproxy: nft iptables -t mangle -A PREROUTING -p tcp -m mark --mark 1 -j TPROXY --on-port 15006
reject: nft iptables -A INPUT -p udp -m multiport --dports 5,6 -j REJECT
ip6: nft ip6tables -t nat -A POSTROUTING -j MASQUERADE
legacy: legacy iptables-legacy -t nat -A POSTROUTING -j MASQUERADE
works: nft iptables -t nat -S OUTPUT | grep REDIRECT
`

// closed is what not even a privileged container may do to the guest's kernel.
const shut = `
dev mem is not shown: ! ls /dev/mem /dev/port 2>/dev/null | grep .
dev mem cannot be opened: mknod /mem c 1 1 && ! head -c 1 /mem
ports cannot be opened: mknod /port c 1 4 && ! head -c 1 /port
kcore cannot be opened: ! head -c 1 /proc/kcore
sysrq is off: [ $(cat /proc/sys/kernel/sysrq) = 0 ]
kexec is off: [ $(cat /proc/sys/kernel/kexec_load_disabled) = 1 ]
an unknown module is not loaded: ! T ip link add i0 type ifb
`

func xtables(t *testing.T) string {
	t.Helper()
	const dir = "/usr/lib/x86_64-linux-gnu/xtables"
	if _, err := os.Stat(dir); err != nil {
		absent(t, err.Error())
	}
	return dir
}

func TestPrivilegedContainersHaveModulesOfTheGuest(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	mounts := []string{
		"--mount", "type=bind,src=" + tools(t, "ip", "xtables-nft-multi", "xtables-legacy-multi") +
			",dst=/tools,options=rbind:ro",
		"--mount", "type=bind,src=" + xtables(t) + ",dst=/xtables,options=rbind:ro",
	}
	script, names := asked(uses + strings.TrimSpace(shut))
	id := newID(t)
	t.Cleanup(func() { remove(t, d, id) })
	args := append([]string{"run", "--rm", "--privileged", "--runtime", harness.Runtime}, mounts...)
	out := ctr(t, d, append(args, harness.Image, id, "sh", "-c", tool+script)...)
	all(t, out, names)
}

// Without the rights nothing is loaded; devices that are the kernel's own are the guest's.
func TestDevicesOfTheGuestWithoutPrivileges(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	script, names := asked(`
fuse: : <>/dev/fuse
tun: : <>/dev/net/tun
no other device: ! ls /dev/loop-control 2>/dev/null
no link without the rights: ! ip link add v0 type veth
no module by a socket: [ ! -e /sys/module/nfnetlink ] && [ ! -e /sys/module/veth ]
no user namespace: ! unshare -U true
none for another user: ! su user -c "unshare -U true"
settings stay: ! echo 1 >/proc/sys/kernel/unprivileged_userns_clone
`)
	id := newID(t)
	t.Cleanup(func() { remove(t, d, id) })
	out := ctr(t, d, "run", "--rm", "--device", "/dev/fuse", "--device", "/dev/net/tun", "--runtime", harness.Runtime,
		harness.Image, id, "sh", "-c", script)
	all(t, out, names)
}

// On a confidential platform, or where the kernel's parameters ask for the same, modules are loaded before the first
// container or never, and the console says nothing of what goes on.
func TestAClosedGuest(t *testing.T) {
	d := daemon(t, primary)
	config := filepath.Join(t.TempDir(), "config.toml")
	write(t, config, fmt.Sprintf("[hypervisor]\nkernel_params = \"%s %s=tun,bridge %s\"\n[runtime]\ntemplate = \"off\"\n",
		contract.ParamClosed, contract.ParamModules, contract.ParamUserns))
	script, names := asked(`
modules are closed: [ $(cat /proc/sys/kernel/modules_disabled) = 1 ]
tun is there: : <>/dev/net/tun
bridge is there: ip link add br0 type bridge
veth is not: ! ip link add v0 type veth
no file of a module is kept: [ ! -e /sys/module/veth ]
no serial line: ! ls /dev/ttyS0 2>/dev/null
user namespaces were asked for: unshare -U true
`)
	id := detached(t, d, harness.Runtime, "--privileged", "--runtime-config-path", config, "--", "sleep", "1000")
	all(t, ctr(t, d, "task", "exec", "--exec-id", "look", id, "sh", "-c", script), names)
	const secret = "word-for-the-console"
	before, err := os.ReadFile(d.Log()) // of guests that may say more
	if err != nil {
		t.Fatal(err)
	}
	out := ctr(t, d, "task", "exec", "--exec-id", "panic", id, "sh", "-c",
		"echo '<0>"+secret+"' >/dev/kmsg; echo c >/proc/sysrq-trigger")
	if out.Code == 0 {
		t.Error("the guest goes on after a panic")
	}
	log, err := os.ReadFile(d.Log())
	if err != nil {
		t.Fatal(err)
	}
	if said := out.Stderr + string(log[len(before):]); strings.Contains(said, secret) ||
		strings.Contains(said, "sysrq triggered crash") {
		t.Errorf("the host has learnt of the kernel's messages: %s", out.Stderr)
	}
}

// all fails the test for each name without its ok.
func all(t *testing.T, out harness.Result, names []string) {
	t.Helper()
	for _, n := range names {
		if !strings.Contains(out.Stdout, n+": ok\n") {
			t.Errorf("%s: no", n)
		}
	}
	if t.Failed() {
		t.Logf("%s%s", out.Stdout, out.Stderr)
	}
}
