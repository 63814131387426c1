// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coco-shim/coco/tests/harness"
)

// Kubeconfig is the administrator's access to the cluster.
func (n *Node) Kubeconfig() string { return filepath.Join(n.Dir, "kubeconfig") }

// StartCluster starts a control plane and the kubelet, and loads the RuntimeClasses of deploy/.
func (n *Node) StartCluster(ctx context.Context, progress func(string)) error {
	if err := n.writeCluster(); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"etcd", n.startEtcd},
		{"API server", n.startAPIServer},
		{"scheduler and controller manager", n.startControllers},
		{"kubelet", func(ctx context.Context) error { return n.StartKubelet(ctx, n.Kubeconfig()) }},
		{"node", n.awaitNode},
		{"runtime classes", n.loadRuntimeClasses},
	} {
		progress(s.name)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("cluster, %s: %w", s.name, err)
		}
	}
	return nil
}

// writeCluster makes keys, a token and the kubeconfig.
func (n *Node) writeCluster() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	token := hex.EncodeToString(secret)
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%d", insecure-skip-tls-verify: true}}]
users: [{name: a, user: {token: %s}}]
contexts: [{name: x, context: {cluster: c, user: a}}]
current-context: x
`, n.apiPort(), token)
	return errors.Join(
		os.WriteFile(n.cert("sa.key"),
			pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600),
		os.WriteFile(n.cert("sa.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), 0o600),
		os.WriteFile(n.cert("tokens.csv"), []byte(token+`,admin,admin,"system:masters"`+"\n"), 0o600),
		os.WriteFile(n.Kubeconfig(), []byte(kubeconfig), 0o600))
}

func (n *Node) cert(name string) string { return filepath.Join(n.Dir, "certs", name) }
func (n *Node) apiPort() int            { return n.port(16443) }
func (n *Node) etcdURL() string         { return fmt.Sprintf("http://127.0.0.1:%d", n.port(12379)) }

func (n *Node) startEtcd(context.Context) error {
	bin, err := exec.LookPath("etcd")
	if err != nil {
		return fmt.Errorf("etcd: %w: tests/setup.sh k8s", harness.ErrAbsent)
	}
	peer := fmt.Sprintf("http://127.0.0.1:%d", n.port(12380))
	return n.controlled("etcd", bin, "--data-dir", filepath.Join(n.Dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", n.etcdURL(), "--advertise-client-urls", n.etcdURL(),
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
}

func (n *Node) startAPIServer(ctx context.Context) error {
	err := n.startControl("kube-apiserver", "--allow-privileged=true", "--etcd-servers", n.etcdURL(),
		"--bind-address", "127.0.0.1",
		"--advertise-address", "127.0.0.1", "--secure-port", fmt.Sprint(n.apiPort()), "--cert-dir", n.cert("api"),
		"--service-account-key-file", n.cert("sa.pub"), "--service-account-signing-key-file", n.cert("sa.key"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--token-auth-file", n.cert("tokens.csv"),
		"--authorization-mode", "AlwaysAllow", "--service-cluster-ip-range", "10.96.0.0/24",
		"--endpoint-reconciler-type", "none")
	if err != nil {
		return err
	}
	return n.control[len(n.control)-1].ready(ctx, time.Minute, func() error {
		_, err := n.Kubectl(ctx, "", "get", "--raw", "/readyz")
		return err
	})
}

func (n *Node) startControllers(context.Context) error {
	return errors.Join(
		n.startControl("kube-scheduler", "--kubeconfig", n.Kubeconfig(), "--leader-elect=false", "--bind-address",
			"127.0.0.1", "--secure-port", fmt.Sprint(n.port(10259))),
		n.startControl("kube-controller-manager", "--kubeconfig", n.Kubeconfig(), "--leader-elect=false", "--bind-address",
			"127.0.0.1", "--secure-port", fmt.Sprint(n.port(10257)),
			"--root-ca-file", n.cert("api/apiserver.crt"), "--service-account-private-key-file", n.cert("sa.key")))
}

// startControl starts a daemon of the control plane.
func (n *Node) startControl(name string, args ...string) error {
	bin, err := binary(name, "k8s")
	if err != nil {
		return err
	}
	return n.controlled(name, append([]string{bin}, args...)...)
}

func (n *Node) controlled(name string, argv ...string) error {
	p, err := startProcess(n.Dir, name, n.env(), argv...)
	if err != nil {
		return err
	}
	n.control = append(n.control, p)
	return nil
}

func (n *Node) awaitNode(ctx context.Context) error {
	return n.Kubelet.ready(ctx, 2*time.Minute, func() error {
		out, err := n.Kubectl(ctx, "", "get", "node", hostname, "-o",
			`jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err == nil && out != "True" {
			return fmt.Errorf("node %s is not Ready: %q", hostname, out)
		}
		return err
	})
}

// RuntimeClasses is the file of deploy/.
func RuntimeClasses() string { return filepath.Join(harness.Root(), "deploy", "runtimeclass.yaml") }

func (n *Node) loadRuntimeClasses(ctx context.Context) error {
	if _, err := n.Kubectl(ctx, "", "apply", "-f", RuntimeClasses()); err != nil {
		return err
	}
	// The label by which the RuntimeClasses schedule.
	_, err := n.Kubectl(ctx, "", "label", "--overwrite", "node", hostname, "coco.dev/runtime=true")
	return err
}

// Kubectl runs kubectl as the cluster's administrator and returns its output, trimmed.
func (n *Node) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	bin, err := binary("kubectl", "k8s")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, bin, append([]string{"--kubeconfig", n.Kubeconfig()}, args...)...)
	cmd.Env = n.env()
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	if err := cmd.Run(); err != nil {
		return strings.TrimSpace(out.String()), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err,
			strings.TrimSpace(errb.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// processes of a node in the order of their start.
var processes = []string{"containerd", "etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubelet"}

// Find returns the node that another command left running below o.Dir, or nil.
func Find(o Options) (*Node, error) {
	n := &Node{Options: o}
	var err error
	if n.bin, err = harness.Binaries(o.Version); err != nil {
		return nil, err
	}
	any := false
	for _, name := range processes {
		p := processIn(n.Dir, name)
		any = any || p != nil
		switch {
		case p == nil:
		case name == "containerd":
			n.Containerd = p
		case name == "kubelet":
			n.Kubelet = p
		default:
			n.control = append(n.control, p)
		}
	}
	if !any {
		return nil, nil
	}
	return n, nil
}

// DeletePods deletes all pods of the cluster and waits for their end.
func (n *Node) DeletePods(ctx context.Context) error {
	_, err := n.Kubectl(ctx, "", "delete", "pods", "--all", "--all-namespaces", "--grace-period=1", "--wait=true",
		"--timeout=60s")
	return err
}
