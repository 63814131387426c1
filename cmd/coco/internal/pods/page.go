// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/webpage"
)

//go:embed page.html
var pageText string

var pageTemplate = webpage.Template(pageText, template.FuncMap{
	"mib":     mib,
	"short":   Short,
	"seconds": func(s float64) string { return fmt.Sprintf("%.2f s", s) },
})

// pageData is the content of the page: all pods, or one.
type pageData struct {
	At     string
	Pods   []pageRow
	One    *view
	Silent int
}

type pageRow struct {
	view
	Age time.Duration
}

// servePage shows the pods, or the one whose id the path names.
func (s *source) servePage(w http.ResponseWriter, r *http.Request) {
	answers, silent := s.ask(r.Context())
	list, now := named(r.Context(), answers), time.Now()
	data := pageData{At: now.UTC().Format(time.DateTime), Silent: silent}
	for _, v := range list {
		data.Pods = append(data.Pods, pageRow{v, now.Sub(v.Created).Round(time.Second)})
		if v.ID == r.PathValue("id") {
			v.fill(r.Context(), v)
			data.One = &v
		}
	}
	if data.One == nil && r.PathValue("id") != "" {
		http.Error(w, "no such pod runs here", http.StatusNotFound)
		return
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, data); err != nil {
		http.Error(w, "the page cannot be made: "+err.Error(), http.StatusInternalServerError)
		return
	}
	webpage.SetHeader(w.Header())
	_, _ = b.WriteTo(w) // the client may be gone
}

// NodeMetricsCommand returns coco node metrics.
func NodeMetricsCommand() *cobra.Command {
	return nodeCommand(&cobra.Command{
		Use:   "metrics",
		Short: "Print or serve the metrics of all pods of this node for Prometheus",
		Long: "Prints the figures of all pods in Prometheus' text format, or serves them at /metrics with --listen: at an\n" +
			"address of the loopback interface, or at a Unix socket that only root may use. Each pod gives at most 1,000\n" +
			"samples, and none for another pod. Four requests are answered at once; pods are asked once a second.",
		Example: "  sudo coco node metrics\n  sudo coco node metrics --listen 127.0.0.1:9469\n" +
			"  sudo coco node metrics --listen unix:///run/coco-metrics.sock",
	}, "", metricsOnly)
}

// metricsOnly is the route of coco node metrics, and of coco metrics --listen.
func metricsOnly(s *source, mux *http.ServeMux) string {
	mux.HandleFunc("GET /metrics", s.serveText)
	return "metrics"
}

// NodeServeCommand returns coco node serve.
func NodeServeCommand() *cobra.Command {
	return nodeCommand(&cobra.Command{
		Use:   "serve",
		Short: "Serve a page with the pods of this node, and their metrics",
		Long: "Serves a page that shows the pods of this node as coco ps and coco inspect do, and /metrics. It changes\n" +
			"nothing, has no script, and listens on the loopback interface or at a Unix socket only; every user of the\n" +
			"host can read what is served at an address.",
		Example: "  sudo coco node serve\n" +
			"  ssh -L 9470:127.0.0.1:9470 root@node coco node serve   # http://localhost:9470/ here",
	}, "127.0.0.1:9470", func(s *source, mux *http.ServeMux) string {
		mux.HandleFunc("GET /metrics", s.serveText)
		mux.HandleFunc("GET /{$}", s.servePage)
		mux.HandleFunc("GET /pod/{id}", s.servePage)
		return ""
	})
}

// nodeCommand completes a command that serves the routes that routes adds. routes returns the path to open.
func nodeCommand(cmd *cobra.Command, address string, routes func(*source, *http.ServeMux) string) *cobra.Command {
	var config string
	cmd.Args = cobra.NoArgs
	cmd.Flags().StringVar(&config, "config", "", "configuration file, as the shim finds it by default")
	cmd.Flags().StringVar(&address, "listen", address, "IP:PORT of the loopback interface, or unix:///PATH")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := stateDir(config)
		if err != nil {
			return err
		}
		s := &source{dir: dir, log: cmd.ErrOrStderr()}
		if address == "" {
			_, err := io.WriteString(cmd.OutOrStdout(), s.text(cmd.Context()))
			return err
		}
		return serveNode(cmd.Context(), address, s, routes)
	}
	return cmd
}

func serveNode(ctx context.Context, address string, s *source, routes func(*source, *http.ServeMux) string) error {
	mux := http.NewServeMux()
	path := routes(s, mux)
	return serveLocal(ctx, address, path, s.log, mux)
}

// ServeLocal serves GET requests of clients on this host at an address of the loopback interface, or at a Unix socket,
// until ctx ends. It writes to log where.
func ServeLocal(ctx context.Context, address string, log io.Writer, handler http.Handler) error {
	return serveLocal(ctx, address, "", log, handler)
}

func serveLocal(ctx context.Context, address, path string, log io.Writer, handler http.Handler) error {
	l, err := listen(ctx, address)
	if err != nil {
		return err
	}
	at := "http://" + l.Addr().String() + "/" + path
	if strings.HasPrefix(address, unixScheme) {
		at = address + ", path /" + path
	}
	fmt.Fprintf(log, "coco: serving at %s\n", at)
	return serve(ctx, l, guarded(handler))
}
