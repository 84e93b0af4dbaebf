// This file answers: which updates does a long-lived go-spiffe watch receive,
// and when?
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func runWatch(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("watch", flag.ContinueOnError)
	path := flags.String("log", "", "file the JSON lines are appended to")
	duration := flags.Duration("duration", time.Minute, "how long to watch")
	audience := flags.String("jwt-audience", "", "also fetch a JWT-SVID for this audience again and again")
	every := flags.Duration("jwt-interval", 3*time.Second, "pause between two JWT-SVID fetches")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := required(flags, "log"); err != nil {
		return err
	}
	file, err := os.OpenFile(*path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	log := &watchLog{file: file}

	ctx, cancel := context.WithTimeout(ctx, *duration)
	defer cancel()
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	var loops sync.WaitGroup
	if *audience != "" {
		loops.Add(1)
		go func() {
			defer loops.Done()
			watchJWT(ctx, client, *audience, *every, log)
		}()
	}
	err = client.WatchX509Context(ctx, log)
	loops.Wait()
	if ctx.Err() != nil {
		return nil // the time is over, or somebody stopped us
	}
	return err
}

func watchJWT(ctx context.Context, client *workloadapi.Client, audience string, every time.Duration, log *watchLog) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.failed("jwt", err)
		default:
			log.jwt(svid)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// watchLog turns what the library reports into JSON lines, each written by one
// system call so that a reader never sees half of one.
type watchLog struct {
	mutex sync.Mutex
	file  *os.File
}

type x509Line struct {
	Kind              string `json:"kind"`
	Received          string `json:"received"`
	SpiffeID          string `json:"spiffe_id"`
	Serial            string `json:"serial"`
	NotBefore         string `json:"not_before"`
	NotAfter          string `json:"not_after"`
	SVIDs             int    `json:"svids"`
	BundleAuthorities int    `json:"bundle_authorities"`
	// Verified is false if the SVID did not verify against the bundle that
	// came in the same update.
	Verified bool `json:"verified"`
}

type jwtLine struct {
	Kind      string   `json:"kind"`
	Received  string   `json:"received"`
	SpiffeID  string   `json:"spiffe_id"`
	Audience  []string `json:"audience"`
	KeyID     string   `json:"key_id"`
	IssuedAt  string   `json:"issued_at"`
	ExpiresAt string   `json:"expires_at"`
}

type errorLine struct {
	Kind     string `json:"kind"`
	Received string `json:"received"`
	Of       string `json:"of"`
	Code     string `json:"code"`
	Error    string `json:"error"`
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (l *watchLog) OnX509ContextUpdate(update *workloadapi.X509Context) {
	svid := update.DefaultSVID()
	leaf := svid.Certificates[0]
	line := x509Line{
		Kind:      "x509",
		Received:  now(),
		SpiffeID:  svid.ID.String(),
		Serial:    leaf.SerialNumber.Text(16),
		NotBefore: instant(leaf.NotBefore),
		NotAfter:  instant(leaf.NotAfter),
		SVIDs:     len(update.SVIDs),
	}
	if bundle, err := update.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain()); err == nil {
		line.BundleAuthorities = len(bundle.X509Authorities())
	}
	_, _, err := x509svid.Verify(svid.Certificates, update.Bundles)
	line.Verified = err == nil
	l.write(line)
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher. The
// library goes on by itself unless WatchX509Context returns.
func (l *watchLog) OnX509ContextWatchError(err error) {
	if status.Code(err) == codes.Canceled || errors.Is(err, context.DeadlineExceeded) ||
		status.Code(err) == codes.DeadlineExceeded {
		return // our own end
	}
	l.failed("x509", err)
}

func (l *watchLog) jwt(svid *jwtsvid.SVID) {
	described, err := describeJWT(svid)
	if err != nil {
		l.failed("jwt", err)
		return
	}
	l.write(jwtLine{
		Kind:      "jwt",
		Received:  now(),
		SpiffeID:  described.SpiffeID,
		Audience:  described.Audience,
		KeyID:     described.KeyID,
		IssuedAt:  described.IssuedAt,
		ExpiresAt: described.ExpiresAt,
	})
}

func (l *watchLog) failed(of string, err error) {
	l.write(errorLine{Kind: "error", Received: now(), Of: of, Code: status.Code(err).String(), Error: err.Error()})
}

func (l *watchLog) write(line any) {
	text, err := json.Marshal(line)
	if err == nil {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		_, err = l.file.Write(append(text, '\n'))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "interop watch: write log: %v\n", err)
	}
}

func now() string {
	return time.Now().UTC().Format(time.RFC3339Nano)
}
