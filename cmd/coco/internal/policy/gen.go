// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/policy/container"
	"github.com/coco-shim/coco/cmd/coco/internal/policy/images"
	"github.com/coco-shim/coco/cmd/coco/internal/progress"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/cmd/coco/internal/signer"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen"
	"github.com/coco-shim/coco/policy/gen/manifest"
	"github.com/coco-shim/coco/policy/gen/predict"
)

// genOptions are the flags of coco policy gen.
type genOptions struct {
	images                   images.Flags
	lock, asJSON             bool
	allow                    images.Allow
	seccomp                  []string
	output, class, algorithm string
	base, config             string
	gen.Options
}

// Forms of gen's output.
const (
	formManifest   = "manifest"
	formAnnotation = "annotation"
	formInitdata   = "initdata"
	formPolicy     = "policy"
)

var forms = []string{formManifest, formAnnotation, formInitdata, formPolicy}

func genCommand() *cobra.Command {
	var o genOptions
	cmd := &cobra.Command{
		Use:   "gen FILE...",
		Short: "Make the policies of a manifest's pods and put them into the manifest",
		Long: "Makes a policy for each workload (Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet,\n" +
			"ReplicationController, Job, CronJob, List) and writes the manifests with the policy in the annotation for\n" +
			"initdata. The files may hold the ConfigMaps, Secrets and service accounts that the pods use; - is\n" +
			"stdin. Where a cluster changes pods at admission, give what the API server makes of them:\n" +
			"kubectl apply --dry-run=server -o yaml -f FILE.\n\n" +
			"Images come from --images, else from their registry. The guest will run exactly these bytes.\n" +
			"All capabilities are closed but those that --allow names; commands of probes and hooks are allowed.",
		Example: "  coco policy gen deployment.yaml > pinned.yaml\n" +
			"  coco policy gen --initdata broker.toml --secret app=kbs:///default/db/key,file=/run/secrets/key pod.yaml\n" +
			"  docker save app:1 -o app.tar && coco policy gen --images app.tar --allow logs pod.yaml\n" +
			"  coco policy gen --output policy pod.yaml | coco policy show -",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.run(cmd, args); err != nil {
				return fmt.Errorf("policy gen: %w", err)
			}
			return nil
		},
	}
	o.flags(cmd)
	cmd.AddCommand(container.Command())
	return cmd
}

func (o *genOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	o.images.Add(f)
	o.allow.Add(f)
	f.StringArrayVar(&o.seccomp, "seccomp", nil,
		"file with the filter that RuntimeDefault is on the nodes (a container's specification, as ctr container info\n"+
			"prints it), or PROFILE=FILE for a profile of type Localhost; may be repeated")
	f.Var(signedVolumes{&o.Signed}, "signed",
		"VOLUME=FILE: the volume's files are those that the owner of the public key in FILE (PEM) signs, see coco policy\n"+
			"sign; may be repeated")
	f.BoolVar(&o.Unpinned, "allow-unpinned", false, "admit any content of ConfigMaps and Secrets that no file has")
	f.Var(secrets{&o.Secrets}, "secret",
		"CONTAINER=kbs:///REPOSITORY/TYPE/TAG,file=PATH[,mode=OCTAL] or …,env=NAME: a secret of the key broker that the\n"+
			"agent gets before it creates the container; the broker is named by --initdata (aa.toml); may be repeated.\n"+
			"…,file=PATH,renew=1h or …,file=PATH,renew=on-request: the agent replaces the file when the secret changes.\n"+
			"…,file=PATH,sealed or …,env=NAME,sealed: the manifest has a sealed text there, which may open this secret alone")
	f.Var(signer.Flag{Of: &o.Sealed}, "signer",
		"whose sealed texts are opened: kbs:///REPOSITORY/TYPE/TAG where the key broker has the public key, or a file with\n"+
			"it (JWK with a kid); may be repeated")
	f.Var(workload{&o.Workload}, "workload",
		"file that says what containers may ask their guest for (docs/workload-api.md), in JSON:\n"+
			`{"port": 8006, "containers": {"app": {"resources": ["kbs:///a/b/c"], "calls": ["info"]}}}`)
	f.StringVarP(&o.output, "output", "o", formManifest, "what is written: "+strings.Join(forms, ", "))
	f.BoolVar(&o.GuestPull, "guest-pull", false,
		"the guest pulls the images from their registry itself (docs/guest-pull.md); --initdata has the registry's CA")
	f.BoolVar(&o.lock, "lock", false, "write the images of the manifest by their digests")
	f.StringVar(&o.class, "runtime-class", "", "pass over pods of other RuntimeClasses; \"\": none is passed over")
	f.StringVarP(&o.Namespace, "namespace", "n", "", "namespace of objects that name none; \"\": any")
	f.StringVar(&o.algorithm, "algorithm", "",
		"digest of the initdata: sha256 for SNP, sha384 for TDX (default: --config's, else sha256)")
	f.StringVar(&o.base, "initdata", "", "initdata document whose other files are kept")
	f.StringVar(&o.config, "config", "",
		"configuration of the RuntimeClass: the pods' launch reference values go to stderr, or into --json")
	f.BoolVar(&o.OldContainerd, "containerd-1", false, "the nodes run containerd 1.x")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
}

// result is what was made for one workload.
type result struct {
	Kind       string            `json:"kind"`
	Namespace  string            `json:"namespace,omitempty"`
	Name       string            `json:"name"`
	Images     map[string]string `json:"images"` // reference → with digest
	Policy     *policy.Policy    `json:"policy"`
	Digest     string            `json:"initdata_digest"`
	Annotation string            `json:"annotation"`
	References map[string]string `json:"references,omitempty"`
	Notes      []string          `json:"notes,omitempty"`

	text []byte // the policy's canonical form
	doc  *initdata.Document
	at   int // the workload's place among all
}

func (r *result) title() string {
	return manifest.Workload{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}.String()
}

func (o *genOptions) run(cmd *cobra.Command, args []string) error {
	if err := o.check(); err != nil {
		return err
	}
	var texts [][]byte
	var set manifest.Set
	for _, path := range args {
		b, err := cli.Input(cmd, path, manifest.MaxText)
		if err == nil {
			err = errors.Join(predict.CheckText("the manifest", b), set.Parse(b))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		texts = append(texts, b)
	}
	results, err := o.results(cmd, &set)
	if err != nil {
		return err
	}
	if err := o.references(cmd, texts, results); err != nil {
		return err
	}
	for _, r := range results {
		for _, n := range r.Notes {
			cmd.PrintErrf("note: %s: %s\n", r.title(), n)
		}
	}
	return o.print(cmd, texts, results)
}

func (o *genOptions) check() error {
	if err := o.allow.Open(&o.Allow); err != nil {
		return err
	}
	if err := o.filters(); err != nil {
		return err
	}
	if !slices.Contains(forms, o.output) {
		return fmt.Errorf("--output %q: known are %s", o.output, strings.Join(forms, ", "))
	}
	if o.lock && o.output != formManifest {
		return fmt.Errorf("--lock is for --output %s", formManifest)
	}
	return o.chooseAlgorithm()
}

// filters reads the files of --seccomp.
func (o *genOptions) filters() error {
	o.LocalSeccomp = map[string]string{}
	for _, arg := range o.seccomp {
		name, file, named := strings.Cut(arg, "=")
		if !named {
			file = arg
		}
		text, err := os.ReadFile(file)
		var digest string
		if err == nil {
			digest, err = gen.FilterDigest(text)
		}
		switch {
		case err != nil:
			return fmt.Errorf("--seccomp %s: %w", arg, err)
		case named:
			o.LocalSeccomp[name] = digest
		case !slices.Contains(o.Seccomp, digest):
			o.Options.Seccomp = append(o.Seccomp, digest)
		}
	}
	return nil
}

// results makes the policy of each workload.
func (o *genOptions) results(cmd *cobra.Command, set *manifest.Set) ([]*result, error) {
	if err := errors.Join(checkContainers("--secret", o.Secrets, set.Workloads),
		checkContainers("--workload", o.Workload.Containers, set.Workloads), signer.Check(o.Secrets, o.Sealed)); err != nil {
		return nil, err
	}
	steps := progress.New(cmd.ErrOrStderr())
	finder, err := o.images.Finder(steps)
	if err != nil {
		return nil, err
	}
	found := map[string]gen.Image{}
	pinned := map[string]string{}
	var out []*result
	var errs []error
	for i, w := range set.Workloads {
		class := w.Pod.Spec.RuntimeClassName
		if o.class != "" && (class == nil || *class != o.class) {
			cmd.PrintErrf("note: %s has another RuntimeClass than %q: it is passed over\n", w, o.class)
			continue
		}
		in := gen.Input{Workload: w, Objects: set, Images: found, Options: o.Options}
		r, err := o.result(cmd.Context(), finder, in, pinned)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if class == nil {
			r.Notes = append(r.Notes, "the pod has no runtimeClassName: without one it runs where nothing asks a policy")
		}
		r.at = i
		out = append(out, r)
	}
	steps.Wait()
	if len(out) == 0 && len(errs) == 0 {
		return nil, errors.New("there is no pod, nor a workload that makes pods")
	}
	return out, errors.Join(append(errs, o.unsigned(out))...)
}

// unsigned is an error if a volume of --signed is in no pod.
func (o *genOptions) unsigned(list []*result) error {
	left := maps.Clone(o.Signed)
	for _, r := range list {
		for i := range r.Policy.Volumes {
			delete(left, r.Policy.Volumes[i].Name)
		}
	}
	for name := range left {
		return fmt.Errorf("--signed %s: no pod has a volume of this name that a container mounts", name)
	}
	return nil
}

// result makes one policy. Images that are resolved already are in the input.
func (o *genOptions) result(
	ctx context.Context, f *images.Finder, in gen.Input, pinned map[string]string,
) (*result, error) {
	w := in.Workload
	r := &result{Kind: w.Kind, Namespace: w.Namespace, Name: w.Name, Images: map[string]string{}}
	for _, ref := range gen.References(w) {
		if _, ok := in.Images[ref]; !ok {
			img, as, err := f.Image(ctx, ref)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w, err)
			}
			in.Images[ref], pinned[ref] = img, as
		}
		r.Images[ref] = pinned[ref]
	}
	p, notes, err := gen.Policy(in)
	if err != nil {
		return nil, err
	}
	r.Policy, r.Notes = p, notes
	if r.text, err = policy.Encode(p); err != nil {
		return nil, fmt.Errorf("%s: %w", w, err)
	}
	return r, o.bind(r)
}

// print writes the results in the form that was asked for.
func (o *genOptions) print(cmd *cobra.Command, texts [][]byte, results []*result) error {
	out := cmd.OutOrStdout()
	if o.asJSON {
		return show.JSON(out, map[string]any{"workloads": results})
	}
	if o.output == formManifest {
		return o.writeManifests(out, texts, results)
	}
	if len(results) != 1 {
		return fmt.Errorf("--output %s is for one workload, and there are %d: use --json or --output %s",
			o.output, len(results), formManifest)
	}
	var err error
	switch r := results[0]; o.output {
	case formAnnotation:
		_, err = fmt.Fprintln(out, r.Annotation)
	case formInitdata:
		_, err = out.Write(r.doc.Text)
	case formPolicy:
		_, err = fmt.Fprintf(out, "%s\n", r.text)
	}
	return err
}
