// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package announce tells a cluster that a node can run pods under coco: it labels the node once the kubelet says that
// the handlers are loaded, and takes a startup taint away.
package announce

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/internal/words"
)

// accountDir is where the kubelet puts a pod's credentials for the API server.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// options are the flags.
type options struct {
	node, taint string
	handlers    []string
	labels      map[string]string
	timeout     time.Duration
}

// Command returns coco node announce.
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "announce",
		Short: "Label this node in its cluster, once its kubelet has the handlers",
		Long: "Runs in a pod, with that pod's service account. It waits until the node is ready and its\n" +
			"status.runtimeHandlers name every handler, then sets the labels, then removes the startup taint. containerd\n" +
			"reports handlers from 2.0 on; with an older one the wait ends in an error, and nothing is changed.",
		Example: "  coco node announce --node worker-1 --handler coco --label coco.dev/runtime=true",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			c, err := inCluster(accountDir, os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
			if err != nil {
				return err
			}
			defer c.client.CloseIdleConnections()
			return c.announce(cmd.Context(), o, cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.node, "node", "", "name of the node")
	f.StringSliceVar(&o.handlers, "handler", []string{"coco"}, "handlers to wait for")
	f.StringToStringVar(&o.labels, "label", nil, "labels to set")
	f.StringVar(&o.taint, "remove-taint", "", "key of the taint to remove")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait for the handlers")
	return cmd
}

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

func (o options) check() error {
	switch {
	case !nodeName.MatchString(o.node):
		return fmt.Errorf("--node %q is no name of a node", o.node)
	case len(o.handlers) == 0:
		return errors.New("--handler: name one at least, or the node would be labelled without a reason")
	case len(o.labels) == 0 && o.taint == "":
		return errors.New("nothing to do: give --label or --remove-taint")
	case o.timeout <= 0:
		return fmt.Errorf("--timeout %v is not positive", o.timeout)
	}
	return nil
}

// cluster is the API server as a pod sees it.
type cluster struct {
	base   string // https://HOST:PORT
	token  string // file: the kubelet renews it
	client *http.Client
	pause  time.Duration // between two looks
}

func inCluster(dir, host, port string) (*cluster, error) {
	if host == "" || port == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST is not set: this command runs in a pod")
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("certificate of the API server: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s has no certificate", filepath.Join(dir, "ca.crt"))
	}
	return &cluster{
		base: "https://" + net.JoinHostPort(host, port), token: filepath.Join(dir, "token"), pause: 2 * time.Second,
		client: &http.Client{
			Timeout:   30 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
		},
	}, nil
}

// nodeObject has the fields of a node that are looked at. Taints stay as they are written.
type nodeObject struct {
	Spec struct {
		Taints []json.RawMessage `json:"taints"`
	} `json:"spec"`
	Status struct {
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
		RuntimeHandlers []struct {
			Name string `json:"name"`
		} `json:"runtimeHandlers"`
	} `json:"status"`
}

// lacks returns the reason why a node cannot be announced, or "".
func (n nodeObject) lacks(handlers []string) string {
	ready := false
	for _, c := range n.Status.Conditions {
		ready = ready || c.Type == "Ready" && c.Status == "True"
	}
	if !ready {
		return "it is not ready"
	}
	var have, missing []string
	for _, h := range n.Status.RuntimeHandlers {
		have = append(have, h.Name)
	}
	for _, h := range handlers {
		if !slices.Contains(have, h) {
			missing = append(missing, h)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	if len(have) == 0 {
		return "its status.runtimeHandlers is empty: containerd reports handlers from 2.0 on; " +
			"with an older one, see coco node status on the node and set the label by hand"
	}
	return fmt.Sprintf("its status.runtimeHandlers has %s and not %s; see coco node status on the node",
		words.Line(strings.Join(have, ", "), 512), strings.Join(missing, ", "))
}

// announce waits for the handlers, and changes the node then.
func (c *cluster) announce(ctx context.Context, o options, log io.Writer) error {
	waiting, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	said := ""
	for {
		n, err := c.get(waiting, o.node)
		why := ""
		if err != nil {
			why = err.Error()
		} else {
			why = n.lacks(o.handlers)
		}
		if why == "" {
			break
		}
		var refused *refusal
		if errors.As(err, &refused) && refused.final() {
			return err
		}
		if why != said && waiting.Err() == nil {
			fmt.Fprintf(log, "coco: node %s: waiting: %s\n", o.node, why)
			said = why
		}
		if said == "" { // the time was over before the first answer
			said = why
		}
		select {
		case <-waiting.Done():
			return fmt.Errorf("node %s is not announced after %v: %s", o.node, o.timeout, said)
		case <-time.After(c.pause):
		}
	}
	if len(o.labels) > 0 {
		patch := map[string]any{"metadata": map[string]any{"labels": o.labels}}
		if err := c.patch(ctx, o.node, "application/merge-patch+json", patch); err != nil {
			return fmt.Errorf("label node %s: %w", o.node, err)
		}
		names := slices.Sorted(maps.Keys(o.labels))
		fmt.Fprintf(log, "coco: node %s has the labels %s\n", o.node, strings.Join(names, ", "))
	}
	return c.removeTaint(ctx, o, log)
}

// removeTaint replaces the list of taints, provided that it was not changed meanwhile.
func (c *cluster) removeTaint(ctx context.Context, o options, log io.Writer) error {
	for range 5 {
		if o.taint == "" {
			return nil
		}
		n, err := c.get(ctx, o.node)
		if err != nil {
			return fmt.Errorf("remove taint %s: %w", o.taint, err)
		}
		rest := []json.RawMessage{}
		for _, t := range n.Spec.Taints {
			var taint struct {
				Key string `json:"key"`
			}
			if err := json.Unmarshal(t, &taint); err != nil {
				return fmt.Errorf("taints of node %s: %w", o.node, err)
			}
			if taint.Key != o.taint {
				rest = append(rest, t)
			}
		}
		if len(rest) == len(n.Spec.Taints) {
			return nil
		}
		err = c.patch(ctx, o.node, "application/json-patch+json", []map[string]any{
			{"op": "test", "path": "/spec/taints", "value": n.Spec.Taints},
			{"op": "replace", "path": "/spec/taints", "value": rest},
		})
		var refused *refusal
		if errors.As(err, &refused) && (refused.status == http.StatusConflict ||
			refused.status == http.StatusUnprocessableEntity) {
			continue // another client has changed the taints
		}
		if err != nil {
			return fmt.Errorf("remove taint %s of node %s: %w", o.taint, o.node, err)
		}
		fmt.Fprintf(log, "coco: node %s has the taint %s no more\n", o.node, o.taint)
		return nil
	}
	return fmt.Errorf("remove taint %s of node %s: its taints change all the time; run this again", o.taint, o.node)
}

// refusal is an answer other than success.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("the API server answers %d: %s", r.status, r.text)
	if r.status == http.StatusForbidden {
		text += "; the service account needs get and patch on this node"
	}
	return text
}

// final says whether asking again cannot help.
func (r *refusal) final() bool {
	return r.status == http.StatusForbidden || r.status == http.StatusUnauthorized || r.status == http.StatusNotFound
}

func (c *cluster) get(ctx context.Context, name string) (n nodeObject, err error) {
	text, err := c.do(ctx, http.MethodGet, name, "", nil)
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(text, &n); err != nil {
		return n, fmt.Errorf("the API server's node: %w", err)
	}
	return n, nil
}

func (c *cluster) patch(ctx context.Context, name, kind string, patch any) error {
	text, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPatch, name, kind, text)
	return err
}

// maxNode bounds an answer; etcd takes objects of at most 1.5 MiB.
const maxNode = 4 << 20

func (c *cluster) do(ctx context.Context, method, name, kind string, body []byte) ([]byte, error) {
	at := c.base + "/api/v1/nodes/" + url.PathEscape(name)
	req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body)) //nolint:gosec // the kubelet's address
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(c.token)
	if err != nil {
		return nil, fmt.Errorf("token of the service account: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Accept", "application/json")
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.client.Do(req) //nolint:gosec // likewise
	if err != nil {
		return nil, fmt.Errorf("ask the API server: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxNode))
	if err != nil {
		return nil, fmt.Errorf("read the API server's answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		var status struct{ Message string }
		_ = json.Unmarshal(text, &status) // the number says enough
		return nil, &refusal{resp.StatusCode, words.Line(status.Message, 512)}
	}
	return text, nil
}
