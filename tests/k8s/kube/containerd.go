// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

// Options of a node.
type Options struct {
	Dir     string // everything of the node; made if absent
	Version string // of containerd, as harness.Binaries knows it
	Handler string // the runtime of pods without a RuntimeClass: "runc" or "coco"
	Index   int    // 0 to 99: ports, bridge and subnet of the node
	Images  []string
	Debug   bool // containerd and shim log everything
}

// Node is a machine of one: containerd, and on demand a kubelet and a control plane.
type Node struct {
	Options
	bin        string // of containerd and ctr
	Containerd *Process
	Kubelet    *Process
	control    []*Process
}

// Socket is containerd's address.
func (n *Node) Socket() string { return filepath.Join(n.Dir, "c.sock") }

func (n *Node) port(base int) int { return base + 100*n.Index }
func (n *Node) bridge() string    { return fmt.Sprintf("cocok8s%d", n.Index) }
func (n *Node) subnet() string    { return fmt.Sprintf("10.214.%d.0/24", n.Index) }

// Gateway is the host's address in the pods' subnet.
func (n *Node) Gateway() string { return fmt.Sprintf("10.214.%d.1", n.Index) }

const sandboxImage = "registry.k8s.io/pause:3.10"

// StartNode brings up containerd with both runtimes and imports the images.
func StartNode(ctx context.Context, o Options) (*Node, error) {
	n, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if err := n.writeContainerd(); err != nil {
		return nil, err
	}
	// The bridge is the node's, not its first pod's.
	if out, err := exec.Command("ip", "link", "add", n.bridge(), "type", "bridge").CombinedOutput(); err != nil &&
		!strings.Contains(string(out), "File exists") {
		return nil, fmt.Errorf("make the bridge %s: %w: %s", n.bridge(), err, out)
	}
	if err := n.RestartContainerd(ctx); err != nil {
		return nil, err
	}
	if err := n.importImages(ctx); err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	return n, nil
}

// prepare makes the node's directory.
func prepare(o Options) (*Node, error) {
	n := &Node{Options: o}
	var err error
	if n.bin, err = harness.Binaries(o.Version); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(harness.Prefix(), "bin", "containerd-shim-coco-v2")); err != nil {
		return nil, fmt.Errorf("coco's shim: %w: make stage", harness.ErrAbsent)
	}
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		return nil, fmt.Errorf("CNI plugins: %w: tests/setup.sh packages", harness.ErrAbsent)
	}
	for _, d := range []string{"cni", "plugins", "manifests", "pods", "logs", "volplugins", "certs"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// v2 says whether the version reads the older schema.
func (n *Node) v2() bool { return strings.HasPrefix(n.Version, "1.") }

func (n *Node) writeContainerd() error {
	cni := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"coco-k8s-%d","plugins":[
{"type":%q,"bridge":%q,"isGateway":true,"ipMasq":true,"hairpinMode":true,
 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}},
{"type":"portmap","capabilities":{"portMappings":true}},
{"type":"bandwidth","capabilities":{"bandwidth":true}}]}
`, n.Index, n.bridgePlugin(), n.bridge(), filepath.Join(n.Dir, "ipam"), n.subnet())
	dropin, err := os.ReadFile(DropIn(n.v2()))
	if err != nil {
		return err
	}
	config := n.schema3() + string(dropin)
	if n.v2() {
		config = n.schema2() + string(dropin)
	} else {
		config = strings.Replace(config, string(dropin), "", 1)
		config = fmt.Sprintf("imports = [%q]\n", DropIn(false)) + config
	}
	coco := fmt.Sprintf("[runtime]\nkubelet_dirs = [%q]\n%s", n.podsDir(), harness.TemplateKey())
	return errors.Join(
		os.WriteFile(filepath.Join(n.Dir, "cni", "10-coco.conflist"), []byte(cni), 0o644),
		os.WriteFile(filepath.Join(n.plugins(), routedBridge), []byte(routed), 0o755),
		os.WriteFile(n.cocoConfig(), []byte(coco), 0o644),
		os.WriteFile(filepath.Join(n.Dir, "config.toml"), []byte(config), 0o644))
}

// DropIn is the file of deploy/ that a user installs.
func DropIn(v2 bool) string {
	name := "coco-v3.toml"
	if v2 {
		name = "coco-v2.toml"
	}
	return filepath.Join(harness.Root(), "deploy", "containerd", name)
}

// routedBridge is the bridge plug-in. In the network namespace of a pod whose name begins with "routed" it adds an
// address, rules and tables, as plug-ins for several networks do.
const routedBridge = "routed-bridge"

// routed is the program of routedBridge.
const routed = `#!/bin/sh
result=$(/usr/lib/cni/bridge)
code=$?
case "$code $CNI_COMMAND $CNI_ARGS" in "0 ADD "*K8S_POD_NAME=routed*)
  gateway=$(printf %s "$result" | sed -n 's/.*"gateway": *"\([^"]*\)".*/\1/p' | head -n 1)
  in="ip -n $(basename "$CNI_NETNS")"
  { $in addr add 10.233.5.3/32 dev eth0 && $in route add blackhole 10.60.0.0/16 &&
    $in rule add from 10.233.5.3 table 100 && $in route add default via "$gateway" dev eth0 table 100 &&
    $in route add prohibit 10.61.0.0/16 table 100; } >&2 || exit 1
esac
printf %s "$result"
exit $code
`

// plugins is a directory with network plug-ins of the tests.
func (n *Node) plugins() string { return filepath.Join(n.Dir, "plugins") }

// bridgePlugin is the name of the node's first plug-in. The older schema has one directory for all of them.
func (n *Node) bridgePlugin() string {
	if n.v2() {
		return "bridge"
	}
	return routedBridge
}

func (n *Node) common() string {
	return fmt.Sprintf(`root = %q
state = %q
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, filepath.Join(n.Dir, "root"), filepath.Join(n.Dir, "state"), n.Socket(), filepath.Join(n.Dir, "opt"))
}

func (n *Node) schema3() string {
	return "version = 3\n" + n.common() + fmt.Sprintf(`[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni", %q]
    conf_dir = %q
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = %q
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`, sandboxImage, n.plugins(), filepath.Join(n.Dir, "cni"), n.Handler)
}

func (n *Node) schema2() string {
	return "version = 2\n" + n.common() + fmt.Sprintf(`[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = %q
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = %q
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`, sandboxImage, filepath.Join(n.Dir, "cni"), n.Handler)
}

// cocoConfig is the shim's configuration, which has to know where this kubelet keeps its volumes.
func (n *Node) cocoConfig() string { return filepath.Join(n.Dir, "coco.toml") }

// podsDir is the kubelet's root directory.
func (n *Node) podsDir() string { return filepath.Join(n.Dir, "pods") }

func (n *Node) env() []string {
	path := strings.Join([]string{filepath.Join(harness.Prefix(), "bin"), n.bin, "/usr/sbin", "/usr/bin", "/sbin", "/bin"},
		":")
	env := []string{
		"PATH=" + path, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1", "HOME=/root",
		"COCO_CONF_FILE=" + n.cocoConfig(),
	}
	for _, k := range []string{"SSL_CERT_FILE", "TMPDIR"} {
		if v := os.Getenv(k); v != "" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// RestartContainerd starts containerd on the state that is there.
func (n *Node) RestartContainerd(ctx context.Context) (err error) {
	_ = os.Remove(n.Socket())
	level := "info"
	if n.Debug {
		level = "debug"
	}
	n.Containerd, err = startProcess(n.Dir, "containerd", n.env(), filepath.Join(n.bin, "containerd"), "-c",
		filepath.Join(n.Dir, "config.toml"), "-l", level)
	if err != nil {
		return err
	}
	return n.Containerd.ready(ctx, 30*time.Second, func() error {
		_, err := n.Ctr(ctx, "version")
		return err
	})
}

// Ctr runs a ctr command.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(n.bin, "ctr"), append([]string{"-a", n.Socket()}, args...)...)
	cmd.Env = n.env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func (n *Node) importImages(ctx context.Context) error {
	for _, f := range n.Images {
		if _, err := n.Ctr(ctx, "-n", "k8s.io", "images", "import", f); err != nil {
			return err
		}
	}
	return nil
}
