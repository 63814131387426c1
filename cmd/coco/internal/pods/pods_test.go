// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/metrics"
	"github.com/coco-shim/coco/virtcontainers/boot"
)

// servePods makes a state directory with two pods that answer and one that does not.
func servePods(t *testing.T) (config string) {
	t.Helper()
	dir := t.TempDir()
	state := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for _, id := range []string{"aa11", "bb22"} {
		if err := os.MkdirAll(filepath.Join(state, id), 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", filepath.Join(state, id, metricsSocket))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = metrics.Serve(ctx, l, func(context.Context) string {
				m := metrics.New("pod", id)
				m.Gauge("coco_pod_info", "The pod.", 1, "pod_name", "web", "pod_namespace", "default")
				m.Gauge("coco_vm_memory_bytes", "Memory.", 640<<20)
				return m.String()
			})
		}()
		t.Cleanup(func() { cancel(); <-done })
	}
	config = filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("[runtime]\nstate_dir = \""+state+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}

func run(t *testing.T, cmd *cobra.Command, args ...string) (string, error) {
	t.Helper()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestMetricsOfAllPods(t *testing.T) {
	config := servePods(t)
	const want = `# HELP coco_pod_info The pod.
# TYPE coco_pod_info gauge
coco_pod_info{pod="aa11",pod_name="web",pod_namespace="default"} 1
coco_pod_info{pod="bb22",pod_name="web",pod_namespace="default"} 1
# HELP coco_vm_memory_bytes Memory.
# TYPE coco_vm_memory_bytes gauge
coco_vm_memory_bytes{pod="aa11"} 6.7108864e+08
coco_vm_memory_bytes{pod="bb22"} 6.7108864e+08
`
	if got, err := run(t, MetricsCommand(), "--config", config); err != nil || got != want {
		t.Errorf("metrics = %q, %v, want %q", got, err, want)
	}
	got, err := run(t, MetricsCommand(), "--config", config, "--pod", "bb", "--json")
	var pods []podMetrics
	if err == nil {
		err = json.Unmarshal([]byte(got), &pods)
	}
	if err != nil || len(pods) != 1 || pods[0].Pod != "bb22" || look(pods[0]).Memory.VM != 640<<20 {
		t.Errorf("metrics --json --pod = %s, %v", got, err)
	}
	if _, err := run(t, MetricsCommand(), "--config", config, "--pod", "cc"); err == nil {
		t.Error("metrics of a pod that is not there succeeds")
	}
	got, err = run(t, ListCommand(), "--config", config)
	for _, want := range []string{"aa11", "default/web", "640 MiB"} {
		if err != nil || !strings.Contains(got, want) {
			t.Errorf("ps = %s, %v, want %q in it", got, err, want)
		}
	}
}

func TestMetricsShowThePublishedLaunch(t *testing.T) {
	config := servePods(t)
	dir, err := stateDir(config)
	if err != nil {
		t.Fatal(err)
	}
	launch := []byte(`{"version":1,"platform":"snp","digest":"abcd"}`)
	if err := os.WriteFile(filepath.Join(dir, "aa11", boot.LaunchFile), launch, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, MetricsCommand(), "--config", config, "--json")
	if err != nil {
		t.Fatal(err)
	}
	var pods []podMetrics
	if err := json.Unmarshal([]byte(out), &pods); err != nil || len(pods) != 2 {
		t.Fatalf("metrics --json = %s, %v, want two pods", out, err)
	}
	if pods[0].Launch == nil || pods[0].Launch.Digest != "abcd" || pods[1].Launch != nil {
		t.Errorf("metrics --json = %s, want the first pod's launch", out)
	}
}

// A pod that does not answer is told; the others are printed all the same.
func TestAPodThatDoesNotAnswer(t *testing.T) {
	config := servePods(t)
	dead := filepath.Join(filepath.Dir(config), "s", "cc33")
	if err := os.MkdirAll(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dead, metricsSocket), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := run(t, MetricsCommand(), "--config", config)
	if err == nil || !strings.Contains(err.Error(), "cc33") || !strings.Contains(got, `pod="aa11"`) {
		t.Errorf("metrics = %q, %v", got, err)
	}
}
