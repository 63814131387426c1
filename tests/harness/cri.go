// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/internal/testimage"
)

// CRI is a containerd whose CRI has the handlers runc, coco, coco-shim (coco by the sandbox API) and
// coco-broken (its VMs do not boot), a network and a client.
type CRI struct {
	*Daemon
	Runtime runtime.RuntimeServiceClient
	Images  runtime.ImageServiceClient
	Bridge  string // of the pods' network
	// Registry is the address of a registry that pulls may go to; Pause is the image in it that CRI
	// unpacks for every sandbox. Our handler never runs it; runc does, so it is busybox, sleeping.
	Registry, Pause string
	conn            *grpc.ClientConn
	server          *httptest.Server
}

// criConfig is the configuration; the arguments are root, state, socket, opt, sandbox image, CNI's
// configuration directory, the handler by default and the configuration of coco-broken.
const criConfig = `version = 3
root = %q
state = %q
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  stats_collect_period = 1
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  drain_exec_sync_io_timeout = "10s"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = %q
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = %q
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.coco]
      runtime_type = "io.containerd.coco.v2"
      pod_annotations = ["io.coco.*", "io.katacontainers.*"]
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.coco-broken]
      runtime_type = "io.containerd.coco.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.coco-broken.options]
        ConfigPath = %q
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.coco-shim]
      runtime_type = "io.containerd.coco.v2"
      sandboxer = "shim"
      disable_pause_image_pull = true
`

const cniConfig = `{"cniVersion":"0.4.0","name":%q,"plugins":[
{"type":"bridge","bridge":%q,"isGateway":true,"ipMasq":true,"hairpinMode":true,"ipam":{"type":"host-local","dataDir":%q,
 "ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}`

// StartCRI brings up a containerd 2.x with CRI below dir.
func StartCRI(ctx context.Context, version, dir, handler string) (_ *CRI, err error) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(dir)) // never fails
	sum := h.Sum32()
	c := &CRI{
		Daemon: &Daemon{Version: version, Dir: dir, Name: fmt.Sprintf("ctrd-%08x", sum)},
		Bridge: fmt.Sprintf("cri%08x", sum),
	}
	conf := filepath.Join(dir, "cni")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		return nil, err
	}
	subnet := fmt.Sprintf("10.%d.%d.0/24", 160+sum%64, sum>>8&0xff)
	cni := fmt.Sprintf(cniConfig, c.Bridge, c.Bridge, filepath.Join(dir, "ipam"), subnet)
	if err := os.WriteFile(filepath.Join(conf, "10-coco.conflist"), []byte(cni), 0o600); err != nil {
		return nil, err
	}
	if err := c.serveImages(); err != nil {
		return nil, err
	}
	broken := filepath.Join(dir, "broken.toml") // a guest whose kernel finds no first process
	text := "[hypervisor]\nkernel_params = \"rdinit=/no/such/init\"\n[runtime]\ntemplate = \"off\"\n"
	if err := os.WriteFile(broken, []byte(text), 0o600); err != nil {
		return nil, err
	}
	config := fmt.Sprintf(criConfig, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.Socket(),
		filepath.Join(dir, "opt"), c.Pause, conf, handler, broken)
	if err := c.start(ctx, config); err != nil {
		c.server.Close()
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	base, err := testimage.Busybox("")
	if err != nil {
		return nil, err
	}
	if err := c.Import(Image, base); err != nil {
		return nil, err
	}
	if c.conn, err = grpc.NewClient("unix://"+c.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))); err != nil {
		return nil, err
	}
	c.Runtime, c.Images = runtime.NewRuntimeServiceClient(c.conn), runtime.NewImageServiceClient(c.conn)
	return c, c.awaitCRI(ctx)
}

// Restart starts the daemon again, after Kill, and waits until its CRI answers, which is later than its version does.
func (c *CRI) Restart(ctx context.Context) error {
	if err := c.Daemon.Restart(ctx); err != nil {
		return err
	}
	return c.awaitCRI(ctx)
}

// awaitCRI asks until CRI is ready with its network.
func (c *CRI) awaitCRI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		s, err := c.Runtime.Status(ctx, &runtime.StatusRequest{})
		ready := err == nil
		for _, cond := range s.GetStatus().GetConditions() {
			ready = ready && (cond.GetStatus() || cond.GetType() != runtime.RuntimeReady &&
				cond.GetType() != runtime.NetworkReady)
		}
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("CRI of containerd %s is not ready: %w, %v; see %s", c.Version,
				errors.Join(ctx.Err(), err), s, c.Log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// PauseImage is what runc runs as a sandbox.
func PauseImage() (testimage.Image, error) {
	im, err := testimage.Busybox("")
	im.Config.Cmd = nil
	im.Config.Entrypoint = []string{"/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"}
	return im, err
}

// serveImages starts the registry, with the pause image in it.
func (c *CRI) serveImages() error {
	pause, err := PauseImage()
	if err != nil {
		return err
	}
	c.server = httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	c.Registry = strings.TrimPrefix(c.server.URL, "http://")
	if c.Pause, err = c.Push("pause:coco", pause); err != nil {
		c.server.Close()
	}
	return err
}

// Import gives CRI an image.
func (c *CRI) Import(ref string, im testimage.Image) error {
	file := filepath.Join(c.Dir, "image.tar")
	if err := im.WriteFile(file, ref); err != nil {
		return err
	}
	defer os.Remove(file)
	if r := c.Ctr(context.Background(), "-n", "k8s.io", "images", "import", file); r.Code != 0 {
		return fmt.Errorf("import %s: %s", ref, r.Stderr)
	}
	return nil
}

// Stop ends the pods, the daemon, and the network that CNI made for it.
func (c *CRI) Stop() error {
	var errs []error
	if c.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		errs = append(errs, c.RemovePods(ctx), c.conn.Close())
	}
	errs = append(errs, c.Daemon.Stop())
	c.server.Close()
	if _, err := net.InterfaceByName(c.Bridge); err == nil {
		if out, err := exec.Command("ip", "link", "delete", c.Bridge).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("delete bridge %s: %w: %s", c.Bridge, err, out))
		}
	}
	return errors.Join(errs...)
}

// RemovePods stops and removes every pod.
func (c *CRI) RemovePods(ctx context.Context) error {
	list, err := c.Runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, p := range list.GetItems() {
		if _, err := c.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			errs = append(errs, fmt.Errorf("stop pod %s: %w", p.GetId(), err))
			continue
		}
		if _, err := c.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s: %w", p.GetId(), err))
		}
	}
	return errors.Join(errs...)
}

// Push puts an image into the registry and returns its reference there.
func (c *CRI) Push(path string, im testimage.Image) (ref string, err error) {
	img, err := im.Build()
	if err != nil {
		return "", err
	}
	ref = c.Registry + "/" + path
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return "", err
	}
	if err := remote.Write(to, img); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	return ref, nil
}
