# bash completion for maintlock and maintlock-wrap. In ~/.bashrc: eval "$(maintlock completion bash)"

@cases@

_maintlock() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=run i=1 value
  COMPREPLY=()
  if [[ ${COMP_WORDS[0]##*/} != maintlock-wrap ]]; then
    if ((COMP_CWORD == 1)); then
      COMPREPLY=($(compgen -W '@commands@ --help --version' -- "$cur"))
      return
    fi
    command=${COMP_WORDS[1]} i=2
  fi
  if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
  if [[ $command == run ]]; then  # from where on is it another program's command line?
    while ((i < COMP_CWORD)); do
      case ${COMP_WORDS[i]} in
        --) ((i++)); _maintlock_other "$i"; return ;;
        -*) [[ -z $(_maintlock_value run "${COMP_WORDS[i]}") ]] || { [[ ${COMP_WORDS[i+1]} == = ]] && ((i++)); ((i++)); } ;;
        *) _maintlock_other "$i"; return ;;
      esac
      ((i++))
    done
    if ((i == COMP_CWORD)) && [[ $cur != -* ]]; then _maintlock_other "$i"; return; fi
  fi
  value=$(_maintlock_value "$command" "$prev")
  case $value in
    '<task>') COMPREPLY=($(compgen -W "$(command maintlock completion --names tasks 2>/dev/null)" -- "$cur")) ;;
    '<dir>') COMPREPLY=($(compgen -d -- "$cur")) ;;
    '<file>') COMPREPLY=($(compgen -f -- "$cur")) ;;
    '<other>') ;;
    '') COMPREPLY=($(compgen -W "$(_maintlock_follows "$command")" -- "$cur")) ;;
    *) COMPREPLY=($(compgen -W "$value" -- "$cur")) ;;
  esac
}

_maintlock_other() {  # complete the command line that begins at word $1
  if declare -F _command_offset >/dev/null; then
    _command_offset "$1"
  elif ((COMP_CWORD == $1)); then
    COMPREPLY=($(compgen -c -- "$cur"))
  else
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}

complete -o filenames -F _maintlock maintlock maintlock-wrap
