// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hostname is the node's name: it makes the API server reach the kubelet on 127.0.0.1.
const hostname = "localhost"

// CgroupRoot is the node's own part of the cgroup tree, named after its directory, which is its alone. Two kubelets
// with one root would kill each other's pods.
func (n *Node) CgroupRoot() string { return fmt.Sprintf("/k8s-%s-%d", filepath.Base(n.Dir), n.Index) }

// usedByKubelet are the v1 hierarchies in which the kubelet makes groups.
var usedByKubelet = []string{"cpu", "memory", "pids", "unified"}

func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// cgroupDirs are the roots in all hierarchies of this machine.
func (n *Node) cgroupDirs() []string {
	if unified() {
		return []string{"/sys/fs/cgroup" + n.CgroupRoot()}
	}
	found, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	var dirs []string
	for _, f := range found {
		dirs = append(dirs, filepath.Dir(f)+n.CgroupRoot())
	}
	return dirs
}

func (n *Node) makeCgroups() error {
	for _, d := range n.cgroupDirs() {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		// Otherwise all pods together weigh as much as one process of the machine.
		for f, weight := range map[string]string{"cpu.shares": "8192", "cpu.weight": "800"} {
			if _, err := os.Stat(filepath.Join(d, f)); err == nil {
				if err := os.WriteFile(filepath.Join(d, f), []byte(weight), 0); err != nil {
					return err
				}
			}
		}
		if strings.HasPrefix(d, "/sys/fs/cgroup/cpuset/") { // v1: empty sets admit nobody
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				v, err := os.ReadFile(filepath.Join(filepath.Dir(d), f))
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(d, f), v, 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (n *Node) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: %s
containerRuntimeEndpoint: unix://%s
imageServiceEndpoint: unix://%s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
address: 127.0.0.1
port: %d
readOnlyPort: 0
healthzPort: %d
resolvConf: %s
clusterDomain: cluster.local
podLogsDir: %s
enforceNodeAllocatable: []
evictionHard: {memory.available: "1Mi", nodefs.available: "1%%", imagefs.available: "1%%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
volumePluginDir: %s
staticPodPath: %s
fileCheckFrequency: 1s
syncFrequency: 10s
volumeStatsAggPeriod: 10s
registerWithTaints: []
maxPods: 200
`, n.CgroupRoot(), n.Socket(), n.Socket(), n.port(10350), n.port(10348), filepath.Join(n.Dir, "resolv.conf"),
		filepath.Join(n.Dir, "logs"), filepath.Join(n.Dir, "volplugins"), n.manifests())
}

func (n *Node) manifests() string { return filepath.Join(n.Dir, "manifests") }

// StartKubelet starts the kubelet: alone, or as a node of the cluster if kubeconfig is not empty.
func (n *Node) StartKubelet(ctx context.Context, kubeconfig string) error {
	bin, err := binary("kubelet", "kubelet")
	if err != nil {
		return err
	}
	if err := n.makeCgroups(); err != nil {
		return fmt.Errorf("cgroups for the kubelet: %w", err)
	}
	config := filepath.Join(n.Dir, "kubelet.yaml")
	if err := errors.Join(
		os.WriteFile(config, []byte(n.kubeletConfig()), 0o644),
		os.WriteFile(filepath.Join(n.Dir, "resolv.conf"), []byte("nameserver 127.0.0.1\n"), 0o644)); err != nil {
		return err
	}
	args := []string{bin, "--config", config, "--root-dir", n.podsDir(), "--hostname-override", hostname}
	if kubeconfig != "" {
		args = append(args, "--kubeconfig", kubeconfig)
	}
	if n.Kubelet, err = startProcess(n.Dir, "kubelet", n.env(), args...); err != nil {
		return err
	}
	return n.Kubelet.ready(ctx, time.Minute, func() error {
		for _, class := range []string{"besteffort", "burstable"} { // these groups are the node's, not its first pod's
			dirs, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", n.CgroupRoot(), "kubepods", class))
			if err != nil || !unified() && len(dirs) < len(usedByKubelet) {
				return fmt.Errorf("the kubelet has not made its cgroups %s yet", class)
			}
		}
		_, err := n.get(ctx, "/pods")
		return err
	})
}

// Pod is what the tests look at in a pod's status.
type Pod struct {
	Metadata struct {
		Name, Namespace, UID string
	}
	Status struct {
		Phase                 string
		Reason                string `json:",omitempty"`
		Message               string `json:",omitempty"`
		PodIP                 string
		InitContainerStatuses []ContainerStatus `json:",omitempty"`
		ContainerStatuses     []ContainerStatus
	}
}

// ContainerStatus is the status of one container.
type ContainerStatus struct {
	Name         string
	ContainerID  string
	Ready        bool
	RestartCount int
	State        ContainerState
	LastState    ContainerState
}

// ContainerState is one of three.
type ContainerState struct {
	Waiting    *Waiting    `json:",omitempty"`
	Running    *Running    `json:",omitempty"`
	Terminated *Terminated `json:",omitempty"`
}

// Waiting is a container that does not run yet, or again.
type Waiting struct{ Reason, Message string }

// Running is a container that runs.
type Running struct{ StartedAt string }

// Terminated is how a container ended.
type Terminated struct {
	ExitCode        int
	Reason, Message string
}

// Container returns the status of a container of the pod, init containers included.
func (p *Pod) Container(name string) (ContainerStatus, bool) {
	for _, list := range [][]ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for _, c := range list {
			if c.Name == name {
				return c, true
			}
		}
	}
	return ContainerStatus{}, false
}

// Pods asks the kubelet for its pods.
func (n *Node) Pods(ctx context.Context) ([]Pod, error) {
	data, err := n.get(ctx, "/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []Pod }
	return list.Items, json.Unmarshal(data, &list)
}

// Pod returns the pod of that name, which the kubelet may not know (yet, or any more): then nil.
func (n *Node) Pod(ctx context.Context, name string) (*Pod, error) {
	pods, err := n.Pods(ctx)
	for i := range pods {
		if pods[i].Metadata.Name == name+"-"+hostname {
			return &pods[i], err
		}
	}
	return nil, err
}

// RunIn runs a command in a container, through the kubelet.
func (n *Node) RunIn(ctx context.Context, pod, container, cmd string) (string, error) {
	out, err := n.request(ctx, http.MethodPost, fmt.Sprintf("/run/default/%s-%s/%s?cmd=%s", pod, hostname, container,
		url.QueryEscape(cmd)))
	return string(out), err
}

// Logs returns a container's output, through the kubelet.
func (n *Node) Logs(ctx context.Context, pod, container string) (string, error) {
	out, err := n.get(ctx, fmt.Sprintf("/containerLogs/default/%s-%s/%s", pod, hostname, container))
	return string(out), err
}

// Sandbox is the id of a pod's sandbox.
func (n *Node) Sandbox(ctx context.Context, pod string) (string, error) {
	out, err := n.Ctr(ctx, "-n", "k8s.io", "containers", "ls", "-q",
		fmt.Sprintf(`labels."io.cri-containerd.kind"==sandbox,labels."io.kubernetes.pod.name"==%s`, pod))
	id := strings.TrimSpace(out)
	if err == nil && (id == "" || strings.Contains(id, "\n")) {
		err = fmt.Errorf("pod %s has not exactly one sandbox: %q", pod, out)
	}
	return id, err
}

// Summary is the kubelet's /stats/summary as it comes.
func (n *Node) Summary(ctx context.Context) ([]byte, error) { return n.get(ctx, "/stats/summary") }

func (n *Node) get(ctx context.Context, path string) ([]byte, error) {
	return n.request(ctx, http.MethodGet, path)
}

var anyCertificate = &http.Client{
	Timeout: 2 * time.Minute,
	// a kubelet on 127.0.0.1 with a certificate made at its start
	Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
}

func (n *Node) request(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("https://127.0.0.1:%d%s", n.port(10350), path),
		http.NoBody)
	if err != nil {
		return nil, err
	}
	res, err := anyCertificate.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("kubelet %s: %s: %s", path, res.Status, bytes.TrimSpace(data))
	}
	return data, err
}

// AddStatic gives the kubelet a static pod.
func (n *Node) AddStatic(name, manifest string) error {
	tmp := filepath.Join(n.Dir, name+".tmp")
	if err := os.WriteFile(tmp, []byte(manifest), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(n.manifests(), name+".yaml"))
}

// RemoveStatic takes it away; the kubelet ends the pod.
func (n *Node) RemoveStatic(name string) error {
	return os.Remove(filepath.Join(n.manifests(), name+".yaml"))
}

// Stop ends the node's processes, the last started first, with every pod that still runs, and frees what they held.
func (n *Node) Stop() error {
	var errs []error
	if n.Kubelet != nil {
		errs = append(errs, n.Kubelet.Stop())
	}
	for i := len(n.control) - 1; i >= 0; i-- {
		errs = append(errs, n.control[i].Stop())
	}
	if n.Containerd != nil {
		n.endPods()
		errs = append(errs, n.Containerd.Stop())
	}
	n.unmountBelow()
	_ = exec.Command("ip", "link", "del", n.bridge()).Run() // there only if a pod had a network
	for _, d := range n.cgroupDirs() {
		removeCgroup(d)
	}
	return errors.Join(errs...)
}

// endPods removes what pods are left as the kubelet would, with their networks, and then every task, so that no shim
// outlives its containerd.
func (n *Node) endPods() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := n.removeSandboxes(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "remove the pods that are left:", err)
	}
	for range 2 { // containers first, then what is left: their sandboxes
		out, err := n.Ctr(ctx, "-n", "k8s.io", "tasks", "ls", "-q")
		if err != nil {
			return
		}
		for _, id := range strings.Fields(out) {
			_, _ = n.Ctr(ctx, "-n", "k8s.io", "tasks", "rm", "-f", id)
		}
	}
}

func (n *Node) removeSandboxes(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+n.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	cri := runtime.NewRuntimeServiceClient(conn)
	list, err := cri.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range list.Items {
		_, err1 := cri.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: s.Id})
		_, err2 := cri.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: s.Id})
		errs = append(errs, err1, err2)
	}
	return errors.Join(errs...)
}

// unmountBelow detaches what is mounted below the node's directory: volumes of pods that were not given back.
func (n *Node) unmountBelow() {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	lines := strings.Split(string(data), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 4 && strings.HasPrefix(f[4], n.Dir+"/") {
			_ = syscall.Unmount(f[4], syscall.MNT_DETACH)
		}
	}
}

func removeCgroup(dir string) {
	_ = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && p != dir {
			removeCgroup(p)
			return filepath.SkipDir
		}
		return nil
	})
	_ = os.Remove(dir)
}
