// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/td"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/kubepod"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
)

// podOptions are the flags of coco measure --pod.
type podOptions struct {
	pod, runtimeClass string
	idBlock           bool
}

func (o *podOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.pod, "pod", "",
		"with --config: measure the pods of this Kubernetes manifest, of any workload kind; - is stdin")
	f.StringVar(&o.runtimeClass, "runtime-class", "",
		"with --pod: the RuntimeClass that has the configuration: pods of others are passed over; \"\" takes any")
	f.BoolVar(&o.idBlock, "id-block", false,
		"with --pod, for SNP: also print the ID block and ID authentication that the shim launches with")
}

// podResult is what the pods of one workload will be reported as.
type podResult struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	launch.Expected
	Registers map[string]measurement.Digest `json:"registers,omitempty"` // TDX
	IDBlock   string                        `json:"id_block,omitempty"`
	IDAuth    string                        `json:"id_auth,omitempty"`

	order []string
}

func (r *podResult) Lines() (out []string) {
	out = []string{r.Digest}
	if len(r.order) > 1 {
		out = nil
		for _, n := range r.order {
			out = append(out, r.Registers[n].String())
		}
	}
	if r.IDBlock != "" {
		out = append(out, "id-block="+r.IDBlock, "id-auth="+r.IDAuth)
	}
	return out
}

func (r *podResult) References() map[string]string {
	if r.Platform == "snp" {
		return map[string]string{"snp_launch_measurement": r.Digest}
	}
	return (&td.Result{Values: r.Registers}).References()
}

func (r *podResult) Steps() *measurement.Trace { return nil }

// unlimited is the size of a node that bounds nothing: the configuration must.
var unlimited = launch.Machine{CPUs: 1 << 20, MemoryMiB: 1 << 40}

// References returns the reference values of a manifest's pods under a configuration, by the names that
// kubepod.Pod.String gives their workloads: names and values as --references writes them, and the digest of the
// initdata as "init_data".
func References(cmd *cobra.Command, config string, manifest []byte) (map[string]map[string]string, error) {
	path, err := filepath.Abs(config)
	if err != nil {
		return nil, err
	}
	c, err := configs.Load(path)
	if err != nil {
		return nil, err
	}
	m, err := kubepod.Parse(manifest)
	if err != nil {
		return nil, err
	}
	if c.Hypervisor.Platform == "none" || c.Hypervisor.MaxVCPUs == 0 {
		return nil, errors.New("hypervisor.platform is \"none\", or hypervisor.max_vcpus is 0, so that the pods' VMs " +
			"have no digest that is known beforehand; give the configuration of a class for snp or tdx")
	}
	out := map[string]map[string]string{}
	var errs []error
	pm := podMeasurer{configOptions: &configOptions{}, chains: chains{}}
	for _, p := range m.Pods {
		r, err := pm.measure(cmd, c, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p, err))
			continue
		}
		out[p.String()] = r.References()
		out[p.String()]["init_data"] = r.HostData
	}
	return out, errors.Join(errs...)
}

func (o *configOptions) runPods(cmd *cobra.Command, c configs.Config) error {
	h := c.Hypervisor
	switch {
	case h.Platform == "none":
		return errors.New("hypervisor.platform is \"none\": such VMs have no launch digest, since no hardware measures " +
			"them; give the configuration of a class for snp or tdx")
	case cmd.Flags().Changed("vcpus") || o.memory != "":
		return errors.New("--pod goes without --vcpus and --memory: the pod says how large it is")
	case o.Explain:
		return errors.New("--pod goes without --explain: explain one VM with --vcpus")
	case h.MaxVCPUs == 0:
		return errors.New("hypervisor.max_vcpus is 0, which means as many as the node has, " +
			"so a pod's number of vCPUs is unknown here; set it")
	case o.idBlock && h.Platform != "snp":
		return errors.New("--id-block is for SNP")
	}
	text, err := readManifest(cmd, o.pod)
	if err != nil {
		return err
	}
	manifest, err := kubepod.Parse(text)
	if err != nil {
		return err
	}
	for _, n := range manifest.Notes {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s\n", n)
	}
	pods, err := o.ofClass(cmd, manifest.Pods)
	if err != nil {
		return err
	}
	var results []report.Result
	var errs []error
	m := podMeasurer{configOptions: o, chains: chains{}}
	for _, p := range pods {
		r, err := m.measure(cmd, c, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p, err))
			continue
		}
		results = append(results, r)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if len(results) > 1 && !o.JSON && o.References == "" && !o.idBlock {
		return podTable(cmd.OutOrStdout(), results)
	}
	return o.Print(cmd, results)
}

// ofClass passes over pods that do not run under the configuration.
func (o *configOptions) ofClass(cmd *cobra.Command, pods []kubepod.Pod) (ours []kubepod.Pod, err error) {
	var others []string
	for _, p := range pods {
		why := ""
		switch {
		case p.RuntimeClass == "":
			why = "has no runtimeClassName, so it does not run in a VM of ours"
		case o.runtimeClass != "" && p.RuntimeClass != o.runtimeClass:
			why = fmt.Sprintf("has runtimeClassName %q, not %q", p.RuntimeClass, o.runtimeClass)
		}
		if why == "" {
			ours = append(ours, p)
			continue
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s %s: it is passed over\n", p, why)
		others = append(others, fmt.Sprintf("%s %s", p, why))
	}
	if len(ours) == 0 {
		return nil, fmt.Errorf("the manifest has no pod to measure: %s", strings.Join(others, "; "))
	}
	return ours, nil
}

func readManifest(cmd *cobra.Command, path string) ([]byte, error) {
	if path != "-" {
		return input.ReadLimited(path, kubepod.MaxText)
	}
	text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), kubepod.MaxText+1))
	if err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	return text, nil
}

// podMeasurer does what the shim does for a pod, up to the launch.
type podMeasurer struct {
	*configOptions
	chains
}

func (m *podMeasurer) measure(cmd *cobra.Command, c configs.Config, p kubepod.Pod) (*podResult, error) {
	if len(p.HostNamespaces) > 0 {
		return nil, fmt.Errorf("has %s, which a VM cannot give: the shim refuses it", strings.Join(p.HostNamespaces, " and "))
	}
	c, _, notes, err := c.ForPod(p.Annotations)
	for _, n := range notes {
		cmd.PrintErrln("note:", n)
	}
	if err != nil {
		return nil, err
	}
	vm, err := planPod(cmd, c, p)
	if err != nil {
		return nil, err
	}
	if err := m.read(cmd, &vm, bootfiles.Read); err != nil {
		return nil, err
	}
	expected, snp, err := launch.Expect(vm.vm, vm.chain)
	if err != nil {
		return nil, err
	}
	r := &podResult{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Expected: expected}
	if vm.vm.TEE == hypervisor.TEETDX {
		v, err := m.tdxValues(cmd.Context(), vm)
		if err != nil {
			return nil, err
		}
		r.Registers, r.order = v.Values, v.Order
		return r, nil
	}
	if m.idBlock {
		return r, r.addIDBlock(snp)
	}
	return r, nil
}

// addIDBlock shows the ID block of a launch, where the configuration makes one.
func (r *podResult) addIDBlock(snp *hypervisor.SNP) error {
	switch {
	case snp == nil:
		return errors.New("--id-block: an IGVM file has its own")
	case len(snp.IDBlock) == 0:
		return errors.New("--id-block: hypervisor.snp_id_block is \"none\"")
	}
	r.IDBlock, r.IDAuth = base64.StdEncoding.EncodeToString(snp.IDBlock), base64.StdEncoding.EncodeToString(snp.IDAuth)
	return nil
}

// planPod plans a pod's VM. A pod that gets fewer vCPUs than its limit asks for is warned of.
func planPod(cmd *cobra.Command, c configs.Config, p kubepod.Pod) (machine, error) {
	files, err := c.Hypervisor.Boot()
	if err != nil {
		return machine{}, err
	}
	plan, err := launch.For(launch.Input{
		ID: "pod", Config: c, Machine: unlimited, Spec: &specs.Spec{Annotations: p.Annotations},
		Boot:     hypervisor.Boot{Cmdline: files.Cmdline},
		Initdata: p.Annotations[contract.KataInitdata], ReadFile: configs.ReadInitdata,
	})
	if err != nil {
		return machine{}, err
	}
	if cpus := p.CPUs(); cpus > plan.Shape.VCPUs {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s asks for %d CPUs and gets %d vCPUs, which is hypervisor.max_vcpus\n",
			p, cpus, plan.Shape.VCPUs)
	}
	return machine{h: c.Hypervisor, vm: plan.VM, files: files}, nil
}

func podTable(out io.Writer, results []report.Result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WORKLOAD\tVCPUS\tMEMORY\tMEASUREMENT")
	for _, r := range results {
		p := r.(*podResult) // made by podMeasurer
		name := p.Kind + "/" + p.Name
		if p.Namespace != "" {
			name = p.Namespace + "/" + name
		}
		fmt.Fprintf(w, "%s\t%d\t%d MiB\t%s\n", name, p.VCPUs, p.MemoryMiB, strings.Join(p.Lines(), " "))
	}
	return w.Flush()
}

// cacheDir is where tables read from QEMU are kept.
func cacheDir() string {
	if d, err := os.UserCacheDir(); err == nil {
		return filepath.Join(d, "coco", "tables")
	}
	return ""
}
